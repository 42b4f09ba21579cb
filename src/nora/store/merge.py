"""Another store's records into one's own: verified, copied, published; where two results differ both stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nora.errors import UserError
from nora.store.record import DamagedRecord, NewerRecord, Record
from nora.store.runs import Store
from nora.store.states import run_state
from nora.store.verify import verify_record


@dataclass(frozen=True)
class Merged:
    """What became of one of their runs."""

    what: Literal["added", "same", "differs", "left"]
    line: str


def open_other(folder: Path, own: Store) -> Store:
    """The store that is merged in; UserError where the folder is none, or is one's own."""
    if not (folder / "runs").is_dir():
        raise UserError(f"FOLDER: given {folder}, which has no runs/; required another store's folder (its results)")
    if folder.resolve() == own.root.resolve():
        raise UserError(f"FOLDER: given {folder}, which is this store itself; required another one")
    return Store(folder)


def merge(own: Store, other: Store, *, dry_run: bool) -> Iterator[Merged]:
    """Run by run. What is not valid there is left; what differs here is kept beside, under its own hash."""
    for path in sorted(other.root.glob("runs/*/*/record.json")):
        kind, identity = path.parent.parent.name, path.parent.name
        record, problem = _verified(other, kind, identity)
        if record is None:
            yield Merged("left", f"{identity} left: {problem}")
            continue
        yield _merge_one(own, other, record, dry_run=dry_run)


def _verified(store: Store, kind: str, identity: str) -> tuple[Record | None, str]:
    """The run's record if it counts, else why not."""
    found = run_state(store, kind, identity)
    if found.record is None:
        return None, found.reason
    problems = verify_record(store, found.record)
    return (None, problems[0]) if problems else (found.record, "")


def _merge_one(own: Store, other: Store, record: Record, *, dry_run: bool) -> Merged:
    would = "would be " if dry_run else ""
    try:
        mine = own.read(record.kind, record.id)
    except DamagedRecord:  # publishing replaces it
        mine = None
    except NewerRecord as error:
        return Merged("left", f"{record.id} left: {error}")
    if mine is not None and mine.result != record.result:
        path = own.beside(record)
        if not dry_run:
            _copy_files(own, other, record)
            own.publish_beside(record)
        return Merged(
            "differs", f"{record.id} differs from the record here: theirs {would}kept beside it as {path.name}"
        )
    if mine is not None and not own.verify_files(mine):
        return Merged("same", f"{record.id} is here already")
    if not dry_run:
        _copy_files(own, other, record)
        own.publish_record(record)
    return Merged("added", f"{record.id} {would}{'added' if mine is None else 'made whole'}")


def _copy_files(own: Store, other: Store, record: Record) -> None:
    """Those that are there: an adapter may not have been kept."""
    folder = other.run_dir(record.kind, record.id)
    for file in record.result["files"].values():
        if (folder / file["name"]).is_file():
            own.publish_file(record.kind, record.id, file["name"], (folder / file["name"]).read_bytes())

"""Where a run's state is decided: one rule, for the plan and for every table.

A record counts if it and every file it lists are what their hashes say; an adapter that was not kept is no damage.
Without a record the newest attempt decides. *Stale* is what only all records together show: the run was made with
another version of its protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nora.config.spec import versionless_id
from nora.store.index import Index
from nora.store.record import DamagedRecord, NewerRecord, Record, read_unchecked
from nora.store.runs import Store

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class State(StrEnum):
    """What a run, or a cell of a table, is; in the order a summary lists them."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    """SLURM has it and it does not run."""
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DIVERGED = "diverged"
    DAMAGED = "damaged"
    STALE = "stale"
    NEWER = "newer"
    """A newer version wrote its record: not read here, and never run over."""
    MISSING = "missing"
    WAITS = "waits"
    """A cell whose settings another run's choice decides."""


@dataclass(frozen=True)
class RunState:
    """A run's state and why."""

    state: State
    reason: str = ""
    record: Record | None = None


MISSING = RunState(State.MISSING)


def _ended(record: Record) -> RunState:
    """Of a record that counts."""
    if record.status == State.DIVERGED:
        where = record.result["diverged"]
        return RunState(State.DIVERGED, f"step {where['step']}, {where['tensor']}", record)
    return RunState(State.DONE, "", record)


def _state_without_record(store: Store, kind: str, run_id: str) -> RunState:
    attempts = store.attempts(kind, run_id)
    if not attempts:
        return MISSING
    alive = [a for a in attempts if a.is_alive()]
    if alive:
        return RunState(State.RUNNING, f"attempt {alive[-1].number}")
    last = attempts[-1]
    stopped = last.interruption()
    if stopped is not None:
        return RunState(State.INTERRUPTED, f"attempt {last.number}: {stopped}")
    reason = last.failure() or last.damage() or "its process ended without a word (killed?)"
    return RunState(State.FAILED, f"attempt {last.number}: {reason}")


def run_state(store: Store, kind: str, run_id: str) -> RunState:
    """The state of one run as it is on disk now; never stale, which only a Snapshot can see. A record in a folder of
    another id (a copy) is damaged: a run counts once."""
    try:
        record = store.read(kind, run_id)
    except DamagedRecord as error:
        return RunState(State.DAMAGED, str(error))
    except NewerRecord as error:
        return RunState(State.NEWER, str(error))
    if record is None:
        return _state_without_record(store, kind, run_id)
    if (record.kind, record.id) != (kind, run_id):
        folder = store.run_dir(kind, run_id)
        return RunState(State.DAMAGED, f"{folder}: holds the record of {record.id}, kind {record.kind} (a copy?)")
    problems = store.verify_files(record)
    return RunState(State.DAMAGED, problems[0]) if problems else _ended(record)


class Snapshot(Mapping[str, Record]):
    """id → record that counts, read once: what is written afterwards is not in it, so that tables made of it agree.

    ``damaged``: id → why its record does not count. ``newer``: id → that a newer version wrote it. ``contested``: id →
    that another result of it lies beside. ``troubles``: those three, a line each. ``unfinished``: id → state of a run
    without a record.
    """

    def __init__(
        self,
        records: Mapping[str, Record],
        *,
        damaged: Mapping[str, str] | None = None,
        newer: Mapping[str, str] | None = None,
        contested: Mapping[str, str] | None = None,
        unfinished: Mapping[str, RunState] | None = None,
    ) -> None:
        self._records = dict(sorted(records.items()))  # by id: what is made of it does not depend on the order read
        self.damaged = dict(damaged or {})
        self.newer = dict(newer or {})
        self.contested = dict(contested or {})
        self.troubles = [*self.damaged.values(), *self.newer.values(), *self.contested.values()]
        self.unfinished = dict(unfinished or {})

    def __getitem__(self, identity: str) -> Record:
        return self._records[identity]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def records_alone(self) -> Snapshot:
        """The same without what only this checkout knows of runs that have no record: what a clone of it sees."""
        return Snapshot(self._records, damaged=self.damaged, newer=self.newer, contested=self.contested)

    @cached_property
    def _versions(self) -> dict[str, Record]:
        return {record.versionless_id: record for record in self._records.values()}

    def state(self, identity: str | None, spec: DataclassInstance | None) -> RunState:
        """The state of a run by its id; ``spec`` finds a record of an older protocol version."""
        if identity is None or spec is None:
            return MISSING
        record = self._records.get(identity)
        if record is not None:
            return _ended(record)
        if identity in self.damaged:
            return RunState(State.DAMAGED, self.damaged[identity])
        if identity in self.newer:
            return RunState(State.NEWER, self.newer[identity])
        found = self.unfinished.get(identity, MISSING)
        if found.state is State.MISSING:
            older = self._versions.get(versionless_id(spec))
            if older is not None:
                version = older.spec["protocol"]["version"]
                return RunState(State.STALE, f"a record of protocol version {version} exists ({older.id})", older)
        return found


def runs(store: Store, index: Index | None = None) -> Iterator[tuple[Path, RunState]]:
    """Every run's folder and state, in order, read as they are asked for; what ``index`` saw whole, and has not changed
    since, is not checked again."""
    for folder in store.run_dirs():
        if index is not None and index.saw_whole(folder):
            with suppress(LookupError, TypeError, ValueError, OSError):
                yield folder, _ended(read_unchecked(folder / "record.json"))
                continue
        found = run_state(store, folder.parent.name, folder.name)
        if index is not None and found.record is not None:
            index.remember(folder)
        yield folder, found


def take_snapshot(store: Store, index: Index | None = None) -> Snapshot:
    """Reads every run once. With ``index`` (for what is only shown) those it saw whole are not checked again."""
    records: dict[str, Record] = {}
    damaged: dict[str, str] = {}
    newer: dict[str, str] = {}
    contested: dict[str, str] = {}
    unfinished: dict[str, RunState] = {}
    for folder, found in runs(store, index):
        kind, run_id = folder.parent.name, folder.name
        if found.record is not None:
            records[run_id] = found.record
            if line := store.contest(folder):
                contested[run_id] = line
        elif found.state is State.DAMAGED:
            # A run of that id may stand whole under its own kind.
            damaged[f"{kind}/{run_id}" if run_id in records or run_id in damaged else run_id] = found.reason
        elif found.state is State.NEWER:
            newer[run_id] = found.reason
        elif found.state is not State.MISSING:
            unfinished[run_id] = found
    return Snapshot(records, damaged=damaged, newer=newer, contested=contested, unfinished=unfinished)

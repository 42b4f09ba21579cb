"""The run store: results/runs/<kind>/<id>/ with one published record and numbered attempts."""

from __future__ import annotations

import errno
import json
import logging
import os
import pwd
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from nora.errors import UserError
from nora.files import DamagedFile, parse_json, publish_once, read_regular, sha256_bytes, sha256_file, write_atomic
from nora.store.attempt import (
    DEAD_AFTER_HEARTBEATS,
    ENDS,
    HEARTBEAT_SECONDS,
    Attempt,
    Job,
    clock_of,
    place_of_process,
    process_started,
)
from nora.store.record import DamagedRecord, Record, read_record

_LOG = logging.getLogger(__name__)
OWN = "mine"
"""Below the store of the tables: what a person runs, in no commit and in no table."""
_NOT_ALWAYS_KEPT = ("adapter",)  # exec.keep_adapter decides; its hash is in the record either way


def share(root: Path) -> None:
    """Where a store's folder (or the one it will be made in) is setgid and its group may write there, what this process
    writes from here on is writable to the group too, whatever its umask was; so is what its jobs write."""
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    mode = there.stat().st_mode
    if mode & stat.S_ISGID and mode & stat.S_IWGRP:
        os.umask(os.umask(0o077) & ~stat.S_IRWXG)


def refusal(error: PermissionError) -> str:
    """One line on what may not be written, or read: whose it is, and how a store is shared."""
    path = Path(str(error.filename or "a file"))
    whose = ""
    for place in (path, path.parent):
        with suppress(OSError, KeyError):
            found = place.stat()
            owner = pwd.getpwuid(found.st_uid).pw_name
            whose = f" ({place.name} belongs to {owner}, mode {stat.S_IMODE(found.st_mode):04o})"
            break
    return (
        f"{path}: permission denied{whose}; a store of several people is a folder of their group, setgid and "
        "group-writable (chgrp GROUP, chmod 2775), or each has one of their own: exec.results=FOLDER"
    )


class Store:
    """Paths and states below one results folder."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise UserError(f"exec.results: given {root}, which is a file; required a folder, or a name for a new one")
        share(root)
        self.root = root

    def home(self, beginning: str) -> Store:
        """Where a run whose id starts so is found: here, or among what `nora run` has put into the folder ``OWN``."""
        own = Store(self.root / OWN)
        there = any(own.run_dirs(beginning)) and not any(self.run_dirs(beginning))
        return own if beginning.isalnum() and there else self

    def run_dirs(self, beginning: str = "") -> list[Path]:
        """The folders of all runs whose id starts so, by id; a stray file is no run. (Names are read and no file is
        looked at: of a hundred thousand a glob takes seconds.)"""
        found = []
        for kind in self.root.glob("runs/*/"):
            with suppress(OSError), os.scandir(kind) as entries:
                found += [
                    (e.name, kind.name, kind / e.name) for e in entries if e.name.startswith(beginning) and e.is_dir()
                ]
        return [folder for _, _, folder in sorted(found)]

    def run_dir(self, kind: str, run_id: str) -> Path:
        return self.root / "runs" / kind / run_id

    def record_path(self, kind: str, run_id: str) -> Path:
        return self.run_dir(kind, run_id) / "record.json"

    def attempts(self, kind: str, run_id: str) -> list[Attempt]:
        """Every attempt, in order."""
        folder = self.run_dir(kind, run_id) / "attempts"
        if not folder.is_dir():
            return []
        return [Attempt(path) for path in sorted(folder.iterdir()) if path.name.isdigit()]

    def new_attempt(self, kind: str, run_id: str, *, job: Job | None = None) -> Attempt:
        """The next free number. The folder gets its name when its owner is written: of two that ask at once one gets
        the lower number (a rename onto a folder with content fails), and the other sees whose it is."""
        folder = self.run_dir(kind, run_id) / "attempts"
        folder.mkdir(parents=True, exist_ok=True)
        number = max((a.number for a in self.attempts(kind, run_id)), default=0) + 1
        made = folder / f".tmp-{secrets.token_hex(8)}"
        made.mkdir()
        owner: dict[str, Any] = {
            **place_of_process(),
            "pid": os.getpid(),
            "process_started": process_started(os.getpid()),
            "job": None,
        }
        if job is not None:
            owner |= {"job": job.id, "job_name": job.name, "cluster": job.cluster}
        try:
            write_atomic(made / "owner.json", json.dumps(owner))
            (made / "heartbeat").touch()
            while True:
                path = folder / f"{number:04d}"
                try:
                    made.rename(path)
                    return Attempt(path)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    number += 1
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            raise

    def clear_leftovers(self, kind: str, run_id: str, *, before: Attempt) -> None:
        """Removes the temporary files of writers that were killed: those of the attempts before this one, which are
        dead, and in the run's own folders those older than a dead attempt's heartbeat."""
        dead = [a.path for a in self.attempts(kind, run_id) if a.number < before.number]
        shared = [self.run_dir(kind, run_id), before.path.parent]
        oldest = clock_of(before.path) - HEARTBEAT_SECONDS * DEAD_AFTER_HEARTBEATS
        for path in (found for folder in (*dead, *shared) for found in folder.glob(".tmp-*")):
            with suppress(OSError):  # another start may clear the same
                if path.parent in dead or path.lstat().st_mtime < oldest:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def failures(self, kind: str, run_id: str) -> int:
        """Attempts that ended badly: with an error, or without a word and not because SLURM requeued their job."""
        attempts = self.attempts(kind, run_id)
        count = 0
        for attempt, later in zip(attempts, [*attempts[1:], None], strict=False):
            if attempt.failure() is not None:
                count += 1
            elif not attempt.is_alive() and not any((attempt.path / end).exists() for end in ENDS):
                job = attempt.owner().get("job")
                count += not (later is not None and job is not None and later.owner().get("job") == job)
        return count

    def publish_file(self, kind: str, run_id: str, name: str, data: bytes) -> None:
        """Puts a file beside the record; ``name`` is made of its content, so one that stands there is the same."""
        path = self.run_dir(kind, run_id) / name
        if publish_once(path, data):
            return
        with suppress(OSError):
            if sha256_file(path) == sha256_bytes(data):
                return
        write_atomic(path, data)

    def drop_damaged_file(self, kind: str, run_id: str, name: str, sha256: str) -> None:
        """Removes a file that is not what its hash says and that this run does not keep."""
        path = self.run_dir(kind, run_id) / name
        if path.is_file():
            if sha256_file(path) != sha256:
                path.unlink(missing_ok=True)
        elif os.path.lexists(path):
            path.rename(path.with_name(f"{name}.damaged-{secrets.token_hex(4)}"))

    def publish_record(self, record: Record) -> bool:
        """Publishes the record unless one stands there already; the first valid one wins."""
        kind = record.spec["kind"]
        path = self.record_path(kind, record.id)
        if publish_once(path, record.to_json()):
            return True
        try:
            there = read_record(path)
        except DamagedRecord:
            there = None
        if there is not None and there.id == record.id:
            return False
        write_atomic(path, record.to_json())  # damaged, or another run's
        return True

    def beside(self, record: Record) -> Path:
        """Where another result of a run that has a record is kept."""
        return self.run_dir(record.kind, record.id) / f"record-{record.result_hash[:8]}.json"

    def publish_beside(self, record: Record) -> None:
        """Keeps another result of a run that has a record."""
        publish_once(self.beside(record), record.to_json())

    def others(self, kind: str, run_id: str) -> list[Path]:
        """The other results of a run (``nora merge``), which no table reads."""
        return sorted(self.run_dir(kind, run_id).glob("record-*.json"))

    def contest(self, folder: Path) -> str:
        """A line where the run in a folder has other results beside its record, else ""."""
        names = ", ".join(path.name for path in self.others(folder.parent.name, folder.name))
        return f"{folder}: two results of one run: record.json counts; beside it {names}" if names else ""

    def read(self, kind: str, run_id: str) -> Record | None:
        return read_record(self.record_path(kind, run_id))

    def verify_files(self, record: Record) -> list[str]:
        """Problems with the files a record names: one line each, [] where every hash is right."""
        problems = []
        folder = self.run_dir(record.spec["kind"], record.id)
        for label, file in record.result["files"].items():
            path = folder / file["name"]
            if not path.is_file():
                if os.path.lexists(path):
                    problems.append(f"{path}: not a regular file ({label})")
                elif label not in _NOT_ALWAYS_KEPT:
                    problems.append(f"{path}: missing ({label})")
            elif sha256_file(path) != file["sha256"]:
                problems.append(f"{path}: not what its hash says ({label})")
        return problems


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of an append-only journal; a torn last line, and what is none of a journal's, is left out.
    [], with a warning, where its first line says that it is another run's or attempt's (older ones do not say)."""
    try:
        content = read_regular(path)
    except (OSError, DamagedFile):
        return []
    lines = []
    for line in content.splitlines():
        try:
            lines.append(parse_json(line, where=path, finite=False))  # a loss may be NaN
        except DamagedFile:
            break
    stamp = lines[0] if lines and isinstance(lines[0], dict) and "run" in lines[0] else None
    if stamp is not None and stamp != Attempt(path.parent).stamp():
        _LOG.warning("%s: foreign (of run %s, attempt %s): left out", path, stamp.get("run"), stamp.get("attempt"))
        return []
    return [line for line in lines if isinstance(line, dict) and _is_update(line)]


def last_update(path: Path) -> dict[str, Any] | None:
    """The last complete line of a journal that is an update; of a long one only the end is read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines[:-1]):
        with suppress(DamagedFile):
            found = parse_json(line, where=path, finite=False)
            if isinstance(found, dict) and _is_update(found):
                return found
    return None


_TAIL_BYTES = 4096


def _is_update(line: dict[str, Any]) -> bool:
    """A phase, two counts, and values that are numbers."""
    counts = [line.get("step"), line.get("total")]
    values = [value for key, value in line.items() if key != "phase"]
    return (
        isinstance(line.get("phase"), str)
        and all(type(count) is int and 0 <= count < 1 << 53 for count in counts)
        and all(isinstance(value, int | float) for value in values)
    )

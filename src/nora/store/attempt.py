"""One try at a run: its owner, its heartbeat, its journal and how it ended."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nora.files import DamagedFile, read_json, write_atomic

HEARTBEAT_SECONDS = 15.0
DEAD_AFTER_HEARTBEATS = 8
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "owner.json": {
        "pid": (int,),
        "process_started": (str, type(None)),
        "job": (str, type(None)),
        **dict.fromkeys(("host", "boot", "pid_namespace", "job_name", "cluster"), (str,)),
    },
    "interrupted.json": {"reason": (str,)},
    "failed.json": {"error": (str,), "detail": (str,)},
}
ENDS = ("finished", "failed.json", "interrupted.json")


def process_started(pid: int) -> str | None:
    """The kernel's start time of a live process (so that a re-used pid is not taken for it), None where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] == "Z" else fields[19]


def place_of_process() -> dict[str, str]:
    """Where this process's pid has its meaning: the host, this boot of it, this PID namespace ("" where not told)."""

    def told(read: Callable[[], str]) -> str:
        try:
            return read().strip()
        except OSError:
            return ""

    return {
        "host": socket.gethostname(),
        "boot": told(lambda: Path("/proc/sys/kernel/random/boot_id").read_text()),
        "pid_namespace": told(lambda: os.readlink("/proc/self/ns/pid")),
    }


def clock_of(folder: Path) -> float:
    """The time now by the clock of the folder's file system, which may be a server's; this machine's where the folder
    cannot be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b".")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


@dataclass(frozen=True)
class Job:
    """The SLURM job that a process is in. Its number alone is no witness: another cluster has that number too."""

    id: str
    name: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Attempt:
    """One try at a run, in a folder of its own."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    def stamp(self) -> dict[str, str]:
        """Whose attempt it is: what its journal begins with."""
        return {"run": self.path.parent.parent.name, "attempt": self.path.name}

    def owner(self) -> dict[str, Any]:
        """Host, process and SLURM job that made the attempt; {} where that was not written or is damaged."""
        owner = self._object("owner.json")
        return owner if {"host", "pid", "process_started"} <= set(owner) else {}

    def _object(self, name: str) -> dict[str, Any]:
        """A file's JSON object; {} where there is none in it."""
        try:
            return read_json(self.path / name, _FIELDS[name])
        except (OSError, DamagedFile):
            return {}

    def damage(self) -> str:
        """The first of its files that is there and cannot be read, a line; "" where every one can."""
        for name, fields in _FIELDS.items():
            try:
                read_json(self.path / name, fields)
            except DamagedFile as error:
                return str(error)
            except OSError:
                continue
        return ""

    def beat(self) -> None:
        """Says that the attempt is alive."""
        (self.path / "heartbeat").touch()

    def finish(self) -> None:
        """Says that the attempt has published its record."""
        (self.path / "finished").touch()

    def interrupt(self, reason: str) -> None:
        """Writes down that the attempt stopped on purpose and can be continued."""
        self._end("interrupted.json", {"reason": reason})

    def interruption(self) -> str | None:
        """Why the attempt stopped on purpose, None where it did not."""
        reason = self._object("interrupted.json").get("reason")
        return None if reason is None else str(reason)

    def fail(self, error: str, detail: str = "") -> None:
        """Writes down why the attempt ended without a record."""
        self._end("failed.json", {"error": error, "detail": detail})

    def _end(self, name: str, body: dict[str, str]) -> None:
        try:
            write_atomic(self.path / name, json.dumps(body, indent=1))
        except OSError:
            # Its process may live on (a worker, a multirun): whoever cannot say that it ended has no owner any more.
            with suppress(OSError):
                (self.path / "owner.json").unlink()
            raise

    def failure(self) -> str | None:
        error = self._object("failed.json").get("error")
        return None if error is None else str(error)

    def detail(self) -> str:
        """The traceback of the failure, "" where there is none."""
        return str(self._object("failed.json").get("detail", ""))

    def is_alive(self) -> bool:
        """Not ended, and: where its pid can be asked for its process, elsewhere its heartbeat."""
        owner = self.owner()
        if not owner or any(os.path.lexists(self.path / end) for end in ENDS):
            return False
        here = place_of_process()
        if all(owner.get(key, here[key]) == value for key, value in here.items()):  # older owners say the host alone
            return process_started(owner.get("pid", 0)) == str(owner.get("process_started"))
        try:
            age = clock_of(self.path) - (self.path / "heartbeat").stat().st_mtime
        except FileNotFoundError:
            return False
        # One from the future is none: its owner would be alive for ever. (A clock set back: until the next beat.)
        return abs(age) < HEARTBEAT_SECONDS * DEAD_AFTER_HEARTBEATS

"""A memory of what was seen whole, beside the records: what shows many runs again does not check them again.

Only ``nora status`` and ``plan`` ask it. A table, a verification and a launch read every byte themselves. Lost,
damaged, of another version or not writable it costs time alone; of several that write it at once the last one wins.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from nora.files import DamagedFile, Json, read_json, sha256_bytes, write_atomic
from nora.store.record import SCHEMA

NAME = ".index.json"
_VERSION = f"1.{SCHEMA}"
_SETTLED_NS = 2_000_000_000
"""What changed later than this before now may change once more within the same time stamp."""


class Index:
    """``composed``: configurations, by what they were composed from (``config.compose.remembering``)."""

    def __init__(self, root: Path) -> None:
        self._path = root / NAME
        self._loaded: dict[str, Json] = {}
        with suppress(OSError, DamagedFile):
            types = {"version": (str,), "runs": (dict,), "composed": (dict,), "sha256": (str,)}
            body = read_json(self._path, types)
            given = body.pop("sha256", "")
            if body.get("version") == _VERSION and set(body) | {"sha256"} == set(types) and given == _digest(body):
                self._loaded = body
        self.composed: dict[str, Json] = dict(self._loaded.get("composed", {}))
        self._seen: dict[str, Json] = {}

    def saw_whole(self, folder: Path) -> bool:
        """Whether a run's folder has the files, sizes and times that it had when its record was last found to count."""
        signature, before = _signature(folder), self._loaded.get("runs", {})
        same = signature is not None and before.get(_key(folder)) == signature
        if same:
            self._seen[_key(folder)] = signature
        return same

    def remember(self, folder: Path) -> None:
        """Notes that a run's record counts as its folder is now."""
        signature = _signature(folder)
        if signature is not None:
            self._seen[_key(folder)] = signature

    def save(self) -> None:
        """Writes it where it changed and the store can be written."""
        body = {"version": _VERSION, "runs": self._seen, "composed": self.composed}
        if body != self._loaded and self._path.parent.is_dir():
            with suppress(OSError):
                write_atomic(self._path, json.dumps({**body, "sha256": _digest(body)}))
        self._loaded = body


def _digest(body: dict[str, Json]) -> str:
    return sha256_bytes(json.dumps(body, sort_keys=True).encode())


def _key(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _signature(folder: Path) -> str | None:
    """Name, size and times of every file in a folder; None where that does not tell whether they are the same."""
    settled = time.time_ns() - _SETTLED_NS
    parts = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found = entry.stat()
                if entry.is_dir():
                    parts.append(f"{entry.name}/")
                elif max(found.st_mtime_ns, found.st_ctime_ns) > settled:
                    return None
                else:
                    parts.append(f"{entry.name} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}")
    except OSError:
        return None
    return "|".join(sorted(parts))

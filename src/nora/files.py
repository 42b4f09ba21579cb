"""The one write path: temp file → fsync → rename (or link) → fsync of the directory; canonical JSON and hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

Json = Any
"""What ``json.loads`` gives: plain data whose shape a schema, or the reader of a record, knows."""


def canonical_json(value: Json) -> str:
    """One spelling per value: sorted keys, no blanks, shortest floats; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def readable_json(value: Json) -> str:
    """Sorted and indented for people and diffs, lists of numbers on one line."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    numbers = re.compile(r"\[\s+((?:(?:-?[\d.]+(?:e[-+]?\d+)?|null),\s+)*(?:-?[\d.]+(?:e[-+]?\d+)?|null))\s+\]")
    return numbers.sub(lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text) + "\n"


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(directory: Path, data: bytes) -> Path:
    temporary = directory / f".tmp-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replaces ``path`` with ``data``: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _write_temporary(path.parent, data.encode() if isinstance(data, str) else data)
    os.replace(temporary, path)
    _sync_directory(path.parent)


def publish_once(path: Path, data: bytes | str) -> bool:
    """Creates ``path`` with ``data`` unless it exists; the first caller wins. True where this call created it.

    Where the file system has no hard links the name is created empty and then replaced: still one caller wins and no
    reader sees a part, but one that looks in between sees an empty file, and so does everybody after a crash there (an
    empty record is damaged, and its run is repeated).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _write_temporary(path.parent, data.encode() if isinstance(data, str) else data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # which error says "no hard links here" differs from one file system to the next
        try:
            path.open("xb").close()
        except FileExistsError:
            return False
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)
    return True

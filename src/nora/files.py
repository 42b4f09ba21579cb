"""The one write path: temp file → fsync → rename (or link) → fsync of the directory; canonical JSON and hashes; and the
one read path of JSON, which trusts nothing it finds."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Json = Any
"""What ``json.loads`` gives: plain data whose shape a schema, or the reader of a record, knows."""


LARGEST_JSON = 64 << 20
DEEPEST_JSON = 64
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_EXPONENT = re.compile(rb"\d[eE]\+?\d{3,}[\s,\]}]")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")


class DamagedFile(ValueError):
    """A file that is not what is written there: the line names it and says why."""


def read_regular(path: Path, *, largest: int = LARGEST_JSON, follow: bool = False) -> bytes:
    """The content of a regular file; FileNotFoundError where there is none, DamagedFile for anything else (a link
    unless ``follow``, a pipe or device, which is never waited for, more than ``largest`` bytes)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DamagedFile(f"{path}: not a regular file")
            if found.st_size > largest:
                raise DamagedFile(f"{path}: larger than {largest} bytes")
            data = os.read(descriptor, found.st_size)
            while len(data) < found.st_size and (more := os.read(descriptor, found.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        what = "not a regular file (a link)" if path.is_symlink() else f"unreadable ({error.strerror or error})"
        raise DamagedFile(f"{path}: {what}") from None


def read_bounded_lines(path: Path, *, longest: int = 16 << 20, largest: int = 1 << 30) -> Iterator[bytes]:
    """The lines of a regular file, unpacked where its name ends in .gz, with no more than one in memory; DamagedFile
    for a line of more than ``longest`` bytes, for more than ``largest`` in all, and for what is no gzip."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as plain:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedFile(f"{path}: not a regular file")
        file = gzip.GzipFile(fileobj=plain) if path.suffix == ".gz" else plain
        number, total = 1, 0
        try:
            while line := file.readline(longest + 1):
                total += len(line)
                if len(line) > longest or total > largest:
                    what = f"more than {longest} bytes" if len(line) > longest else f"more than {largest} bytes so far"
                    raise DamagedFile(f"{path}, line {number}: {what}")
                yield line.removesuffix(b"\n")
                number += 1
        except (EOFError, OSError, zlib.error) as error:
            raise DamagedFile(f"{path}, line {number}: unreadable ({error})") from None


def parse_json(data: bytes | str, *, where: Path | str, finite: bool = True) -> Json:
    """The value of a JSON text in UTF-8; DamagedFile for a key twice in one object, a number that is none or that no
    float holds, a lone surrogate, and more than ``DEEPEST_JSON`` levels. ``finite=False``: infinity is a number too (a
    journal's), or the caller sees to it."""
    try:
        raw = data.encode() if isinstance(data, str) else data
        value = json.loads(raw.decode(), parse_constant=_no_number if finite else float, object_pairs_hook=_unique)
        if _depth_at_most(raw) > DEEPEST_JSON and _depth(value) > DEEPEST_JSON:
            raise ValueError(f"more than {DEEPEST_JSON} levels deep")
        if b"\\u" in raw and _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
        if b"0" * 300 in raw.translate(_DIGITS) or (finite and _EXPONENT.search(raw + b" ")):
            json.loads(raw.decode(), parse_int=_finite, parse_float=_finite if finite else float)
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{where}: not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise DamagedFile(f"{where}: holds a lone surrogate, which is no text") from None
    except RecursionError:
        raise DamagedFile(f"{where}: not valid JSON (more than {DEEPEST_JSON} levels deep)") from None
    except (ValueError, OverflowError) as error:
        raise DamagedFile(f"{where}: not valid JSON ({error})") from None
    return value


def read_json(path: Path, fields: Mapping[str, tuple[type, ...]], *, follow: bool = False) -> dict[str, Json]:
    """The JSON object in a file, each of ``fields`` that is in it of one of its types; FileNotFoundError where there is
    no file, DamagedFile where it is anything else."""
    value = parse_json(read_regular(path, follow=follow), where=path)
    if not isinstance(value, dict):
        raise DamagedFile(f"{path}: given a value of type {type(value).__name__}, required an object")
    for key, types in fields.items():
        if key in value and type(value[key]) not in types:
            raise DamagedFile(
                f"{path}: {key}: given a value of type {type(value[key]).__name__}, "
                f"allowed {', '.join(allowed.__name__ for allowed in types)}"
            )
    return value


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is more than a float holds")
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
    return value


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _depth_at_most(raw: bytes) -> int:
    """A bound on the depth of a JSON text, found without reading it: brackets inside strings count too."""
    brackets, depth = raw.translate(None, _NO_BRACKETS), 0
    while brackets and depth <= DEEPEST_JSON:
        brackets, depth = brackets.replace(b"[]", b"").replace(b"{}", b""), depth + 1
    return depth


def _depth(value: Json) -> int:
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def canonical_json(value: Json) -> str:
    """One spelling per value: sorted keys, no blanks, shortest floats; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


_LINE = 300  # letters


def readable_json(value: Json) -> str:
    """Sorted and indented for people and diffs; what holds nothing nested is one line: a module's proof, a curve."""
    return _laid_out(value, "\n") + "\n"


def _laid_out(value: Json, margin: str) -> str:
    """``margin``: a line break and what the lines that enclose the value begin with."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    if not any(isinstance(item, dict | list | tuple) and item for item in inner):
        text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
        if len(text) <= _LINE or not any(isinstance(item, str) for item in inner):
            return text
    deeper = margin + " "
    if isinstance(value, dict):
        items = [json.dumps(key, ensure_ascii=False) + ": " + _laid_out(value[key], deeper) for key in sorted(value)]
        return "{" + deeper + f",{deeper}".join(items) + margin + "}"
    return "[" + deeper + f",{deeper}".join(_laid_out(item, deeper) for item in value) + margin + "]"


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Of a regular file, or what a link to one leads to; OSError for anything else (a pipe is not waited for)."""
    digest = hashlib.sha256()
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(directory: Path, data: bytes | Iterable[bytes]) -> Path:
    temporary = directory / f".tmp-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_atomic(path: Path, data: bytes | str | Iterable[bytes]) -> None:
    """Replaces ``path`` with ``data`` (or its parts, one after the other): a reader sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _write_temporary(path.parent, data.encode() if isinstance(data, str) else data)
    try:
        os.replace(temporary, path)
    except IsADirectoryError:  # kept, and out of the way
        path.rename(path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}"))
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

"""What is typed and what lies on the disk, made hostile in bulk: parts of ``nora bench chaos``."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from nora.errors import UserError
from nora.kinds import compose_run

_GROUPS = ("model", "task", "method", "protocol", "problem", "start", "solver", "scale", "kind", "exec")
_VALUES = (
    "null", "true", "0", "-1", "1e-3", "1e999", "-1e999", "nan", "inf", "9" * 400, "9" * 5_000, "''", "[]",
    "{}", "[1,2]", "[[[]]]", "{a: 1}", "{a:{b:{c:1}}}", "???", "${seed}", "${x.y}", "${..seed}", "${scale[lr]}",
    "${oc.env:HOME}", "${oc.decode:'['}", "${oc.select:${seed}}", "${", "}", "'", '"', "\\", "a,b", "range(1,3)",
    "choice(1,2)", "../../etc/passwd", "/dev/zero", "~", "=x", "@x", "\x1b[31m", "\u202e", "\ud7ff", "x" * 9_999,
    "x" * 10_001, "[" * 40 + "]" * 40, "!!python/object:os.system", "&a [*a]", "\x00", "\n", "\t",
)  # fmt: skip


def _keys(node: Any, path: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [path]
    return [path, *(key for name, value in node.items() for key in _keys(value, f"{path}.{name}".strip(".")))]


def configs(checkout: Path, trials: int, draw: random.Random) -> dict[str, Any]:
    """Overrides of every key there is, and of some there are not, each composed in this process: a spec or a UserError
    of one line."""
    conf = checkout / "conf"
    files = {group: sorted(path.stem for path in (conf / group).glob("*.yaml")) for group in _GROUPS}
    keys = ["seed", "measure", "nothing", "hydra.job.chdir", "a" * 250, "a.b.c.d", *_GROUPS]
    for group in _GROUPS:
        for path in (conf / group).glob("*.yaml"):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            keys += [key for key in _keys(content, group) if key != group]
    keys = sorted(set(keys))

    def word() -> str:
        if draw.random() < 0.3:
            group = draw.choice(_GROUPS)
            return f"{draw.choice(['', '', '+', '++', '~'])}{group}={draw.choice(files[group] or ['x'])}"
        key = draw.choice(keys) + draw.choice(["", "", "", "", "@x", ".", "[0]"])
        value = draw.choice(_VALUES) if draw.random() < 0.7 else repr(draw.uniform(-1e3, 1e3))
        return f"{draw.choice(['', '', '', '+', '++', '~'])}{key}={value}"

    specs = refused = 0
    seconds, wrong = [], []
    for _ in range(trials):
        words = [word() for _ in range(draw.randint(1, 3))]
        started = time.process_time()
        try:
            compose_run(checkout, words)
            specs += 1
        except UserError as error:
            refused += 1
            if not str(error) or "\n" in str(error):
                wrong.append(f"{words!r:.200}: more than one line")
        except BaseException as error:
            wrong.append(f"{words!r:.200}: {type(error).__name__}: {error!s:.100}")
        seconds.append(time.process_time() - started)
    return {"trials": trials, "passed": trials - len(wrong), "specs": specs, "refused": refused, "wrong": wrong[:20],
            "median_ms": round(1e3 * median(seconds), 1), "most_ms": round(1e3 * max(seconds), 1)}  # fmt: skip


_DEEP = b"[" * 10_000 + b"]" * 10_000
_CONTENT: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit": lambda data, draw: _flip(data, draw),
    "bits": lambda data, draw: _flip(_flip(_flip(data, draw), draw), draw),
    "truncated": lambda data, draw: data[: draw.randrange(len(data))],
    "zero-filled": lambda data, draw: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "zero tail": lambda data, draw: data + bytes(64),
    "twice": lambda data, draw: data + data,
    "CRLF": lambda data, draw: data.replace(b",", b",\r\n") + b"\xff",
    "numbers": lambda data, draw: re.sub(rb"\d+(\.\d+)?", lambda _: draw.choice([b"NaN", b"1e999"]), data, count=1),
    "types": lambda data, draw: re.sub(rb'"[^"]*"', lambda f: draw.choice([b"null", b"[]", b"7"]), data, count=3),
    **{name: lambda data, draw, text=text: text for name, text in {  # type: ignore[misc]
        "null": b"null", "list": b"[]", "object": b"{}", "text": b'"x"', "digits": b'{"pid": ' + b"9" * 5_000 + b"}",
        "deep": _DEEP, "surrogate": b'{"host": "\\ud800"}', "overflow": b'{"pid": 1e999}', "NaN": b'{"pid": NaN}',
        "keys twice": b'{"pid": 1, "pid": 2}', "empty": b"", "UTF-16": "{}".encode("utf-16"),
    }.items()},
}  # fmt: skip
_PLACES: dict[str, Callable[[Path], object]] = {
    "directory": lambda path: path.mkdir(), "pipe": lambda path: os.mkfifo(path),
    "endless link": lambda path: path.symlink_to("/dev/zero"), "dead link": lambda path: path.symlink_to("nowhere"),
    "huge": lambda path: (path.touch(), os.truncate(path, 200 << 20)), "gone": lambda path: None,
}  # fmt: skip


def _flip(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def spoil(path: Path, how: str, other: Path | None, draw: random.Random) -> None:
    """Puts something else in the place of a file."""
    data = path.read_bytes() or b"x"
    path.unlink()
    if how in _PLACES:
        _PLACES[how](path)
    else:
        path.write_bytes(other.read_bytes() if how == "another run's" and other else _CONTENT[how](data, draw))


def corruptions(
    stores: dict[str, tuple[Path, Path]],
    read: Callable[[Path], list[str]],
    restart: Callable[[str, Path], bool],
    trials: int,
    draw: random.Random,
    *,
    folder: Path,
    restarts: int,
) -> dict[str, Any]:
    """Each file of each store (``stores``: name → it and a like one of another run) spoilt in each way. ``read``
    reads everything there is and names what it believed wrongly; of so many ``restarts`` the
    plain start must come to the expected end."""
    hows = [*_CONTENT, *_PLACES, "another run's"]
    plan = []
    for name, (own, other) in stores.items():
        for path in sorted(own.rglob("*")):
            if path.is_file() and not path.is_symlink():
                like = [p for p in other.rglob(path.name.split(".")[0] + ".*") if p.suffix == path.suffix]
                plan += [(name, path.relative_to(own), how, like[0] if like else None) for how in hows]
    rounds = -(-trials // len(plan))
    plan = (plan * rounds)[:trials]
    draw.shuffle(plan)
    wrong, stuck, by = [], 0, {}
    restarted = 0
    for number, (name, file, how, other) in enumerate(plan):
        place = folder / "spoilt"
        shutil.copytree(stores[name][0], place)
        what = f"{name}: {re.sub(r'[0-9a-f]{8,}|[0-9]{4,}', '…', str(file))}"
        try:
            spoil(place / file, how, other, draw)
            found = read(place)
            if number % max(1, trials // restarts) == 0:
                restarted += 1
                if not restart(name, place):
                    stuck += 1
                    found.append("a plain start did not come to the expected end")
        except BaseException as error:
            found = [f"{type(error).__name__}: {error!s:.100}"]
        shutil.rmtree(place)
        wrong += [f"{what}, {how}: {line}" for line in found]
        tally = by.setdefault(what, {"trials": 0, "passed": 0})
        tally["trials"] += 1
        tally["passed"] += not found
    passed = sum(tally["passed"] for tally in by.values())
    return {
        "trials": len(plan),
        "passed": passed,
        "restarted": restarted,
        "stuck": stuck,
        "wrong": wrong[:20],
        "by": by,
    }

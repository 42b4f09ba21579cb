"""What is typed and what lies on the disk, made hostile in bulk: parts of ``nora bench chaos``."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from nora.errors import UserError
from nora.execution.tracker import history
from nora.files import canonical_json, sha256_bytes
from nora.kinds import compose_run
from nora.launch.plan import run_progress
from nora.launch.queue import logs, logs_text, why, why_text
from nora.reporting.ledger import read_rows
from nora.store.index import Index
from nora.store.runs import Store
from nora.store.states import take_snapshot
from nora.store.verify import verify_record

Subjects = dict[str, tuple[Any, Any]]

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
    """Puts something else in the place of a file; another run's checkpoint under the name that is right for it."""
    data = path.read_bytes() or b"x"
    path.unlink()
    if how in _PLACES:
        _PLACES[how](path)
        return
    path.write_bytes(other.read_bytes() if how == "another run's" and other else _CONTENT[how](data, draw))
    if path.name.startswith("step-") and draw.random() < 0.7:
        path.rename(path.with_name(f"{path.name.split('.')[0]}.{sha256_bytes(path.read_bytes())}.safetensors"))


def spoilt_stores(subjects: Subjects, die: Callable[[int], None], folder: Path) -> dict[str, tuple[str, Path, Path]]:
    """Name → whose it is, a finished, a killed or a failed run's store, and the same of another seed's."""
    stores = {}
    for name, pair in subjects.items():
        for state in ("finished", "killed", "failed"):
            places = []
            for which, made in enumerate(pair):
                place = folder / f"{name} {state} {which}"
                made.wait(made.start(place, on_step=None if state == "finished" else die))
                if state == "failed":
                    Store(place).attempts(made.kind, made.id)[-1].fail("OSError: x", "a\nb")
                elif state == "finished":
                    shutil.copy(made.checkout / "results" / "theory.json", place)
                    index = Index(place)
                    take_snapshot(Store(place), index)
                    index.save()
                places.append(place)
            stores[f"{name}, {state}"] = (name, places[0], places[1])
    return stores


def believed(results: Path, expected: dict[str, Any]) -> list[str]:
    """What is read of a store and is not so; every reader is asked."""
    store, wrong = Store(results), []
    with suppress(UserError):  # a line, for a record of a schema to come
        for snapshot in (take_snapshot(store), take_snapshot(store, Index(results))):
            for identity, record in snapshot.items():
                result, files = expected[identity]
                if canonical_json(record.result) != result:
                    wrong.append("counts with another result")
                elif not verify_record(store, record):
                    folder = store.run_dir(record.kind, identity)
                    there = {label: folder / file["name"] for label, file in record.result["files"].items()}
                    wrong += [
                        f"{label} counts"
                        for label, path in there.items()
                        if path.is_file() and path.read_bytes() != files[label]
                    ]
    for folder in store.run_dirs():
        kind, identity = folder.parent.name, folder.name
        why_text(why(store, identity, None))
        logs_text(logs(store, identity))
        run_progress(store, kind, identity)
        history(store, kind, identity)
        store.failures(kind, identity)
    with suppress(UserError, FileNotFoundError):
        read_rows(results / "theory.json")
    return wrong


def corruptions(
    subjects: Subjects, die: Callable[[int], None], trials: int, draw: random.Random, *, restarts: int
) -> dict[str, Any]:
    """Every file of every store spoilt in each way, in an order drawn: nothing of it is believed that is not so, no
    reader stops, and of so many the plain restart comes to the expected end. ``subjects``: name → a run, and one of
    another seed; ``die``: told of each step, kills a run."""
    expected = {own.id: own.expected for own, _ in subjects.values()}
    wrong: list[str] = []
    by: dict[str, dict[str, int]] = {}
    restarted = stuck = 0
    with next(iter(subjects.values()))[0].store("stores") as folder:
        stores = spoilt_stores(subjects, die, folder)
        plan = _plan(stores, trials, draw)
        for number, (name, file, how, other) in enumerate(plan):
            subject, place = subjects[stores[name][0]][0], folder / "spoilt"
            shutil.copytree(stores[name][1], place)
            try:
                spoil(place / file, how, other, draw)
                found = believed(place, expected)
                if number % max(1, trials // restarts) == 0:
                    restarted += 1
                    if not subject.recovers(place):
                        stuck += 1
                        found.append("a plain start did not come to the expected end")
            except Exception as error:
                found = [f"{type(error).__name__}: {error!s:.100}"]
            shutil.rmtree(place)
            what = f"{name}: {re.sub(r'[0-9a-f]{8,}', '*', file.name)}"
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


def _plan(
    stores: dict[str, tuple[str, Path, Path]], trials: int, draw: random.Random
) -> list[tuple[str, Path, str, Path | None]]:
    """Store, file, way, and the like file of another run."""
    every: list[tuple[str, Path, str, Path | None]] = []
    for name, (_, own, other) in stores.items():
        for path in sorted(path for path in own.rglob("*") if path.is_file()):
            like = [p for p in other.rglob(f"{path.name.split('.')[0]}.*") if p.suffix == path.suffix]
            hows = [*_CONTENT, *_PLACES, *(["another run's"] if like else [])]
            every += [(name, path.relative_to(own), how, like[0] if like else None) for how in hows]
    plan: list[tuple[str, Path, str, Path | None]] = []
    while len(plan) < trials:
        draw.shuffle(every)
        plan += every
    return plan[:trials]

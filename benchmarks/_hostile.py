"""What is typed and what lies on the disk, made hostile in bulk: parts of ``nora bench chaos``."""

from __future__ import annotations

import csv
import io
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from nora import cli
from nora.config import compose
from nora.config.spec import run_id
from nora.errors import UserError
from nora.execution.tracker import history
from nora.files import canonical_json, sha256_bytes
from nora.kinds import compose_run, read_spec
from nora.launch.plan import run_progress
from nora.launch.queue import logs, logs_text, why, why_text
from nora.reporting.collation import artefact_texts, report_text
from nora.reporting.ledger import read_rows
from nora.store.index import Index
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import take_snapshot
from nora.store.verify import verify_record
from nora.tables.target import load_target

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

    def again(words: list[str]) -> float:
        compose._composed.cache_clear()
        started = time.process_time()
        with suppress(Exception):
            compose_run(checkout, words)
        return time.process_time() - started

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
        took = time.process_time() - started
        if took > 0.05:  # the least of three: what else the machine and Python's collector do is not the config's
            took = min(took, again(words), again(words))
        seconds.append(took)
    return {"trials": trials, "passed": trials - len(wrong), "specs": specs, "refused": refused, "wrong": wrong[:20],
            "median_ms": round(1e3 * median(seconds), 1), "most_ms": round(1e3 * max(seconds), 1),
            "over_50_ms": sum(one > 0.05 for one in seconds)}  # fmt: skip


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
    """Puts something else in the place of a file; another run's checkpoint under the name that is right for it. (One of
    the own run that is forged so, hash and all, is no accident and cannot be told.)"""
    data = path.read_bytes() or b"x"
    path.unlink()
    if how in _PLACES:
        _PLACES[how](path)
        return
    path.write_bytes(other.read_bytes() if how == "another run's" and other else _CONTENT[how](data, draw))
    if path.name.startswith("step-") and how == "another run's":
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
                    _two_minutes_later(place)
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


def _two_minutes_later(place: Path) -> None:
    """An owner that looks like another machine's lives as long as its last heartbeat is fresh."""
    for beat in place.rglob("heartbeat"):
        if beat.is_file() and not beat.is_symlink():
            os.utime(beat, (time.time() - 300,) * 2)


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


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
PAYLOADS = (
    *(f"<{tag}" for tag in ("script>alert(1)</script>", "img src=x onerror=alert(1)>", "svg onload=alert(1)>",
                            "iframe src=javascript:alert(1)>", "a href=javascript:alert(1)>x</a>", "/script><script>x",
                            "!--", "style>*{display:none}</style>", "math><mi//xlink:href=javascript:x>",
                            "base href=//x>", "form action=//x><input>", "meta http-equiv=refresh content=0>",
                            "/td></tr></table>")),
    "\"onmouseover=alert(1) x=\"", "'onfocus=alert(1) autofocus='", "&lt;script&gt;", "&#x3c;b&#x3e;", "{{7*7}}",
    "{%x%}",
    "${7*7}", "`id`", "$(id)", "]]>", "javascript:alert(1)",
    *(f"\\{tex}" for tex in ("input{/etc/passwd}", "write18{id}", "immediate\\write18{id}", "openin5=x",
                              "catcode`\\%=0", "def\\x{\\x}\\x", "include{x}", "end{document}",
                              "csname input\\endcsname")),
    "%x", "#1", "$x$", "a&b", "x_y^z", "{", "}", "~", "^^5cinput{x}",
    *(f"{first}{rest}" for first in "=+-@" for rest in ("cmd|'/C calc'!A0", "SUM(1,1)*cmd", "HYPERLINK(\"//x\")")),
    "\t=1+1", "\r=1+1", "\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;file:///x\x1b\\x", "\x9b2J", "\x1b[2J\x1b[H",
    "\u202egnp.exe", "\u2066x\u2069", "\u061cx", "a\u2028b", "\x7f\x08\x08", "a\nb", "[x]", "../../x", "-rf", "a\x00b",
)  # fmt: skip


class _Page(HTMLParser):
    """What a browser would act on: scripts, handlers, addresses, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.acts: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "base", "form", "meta", "style", "svg", "math", "img"):
            self.acts[tag] += 1
        for name, value in attrs:
            if name.startswith("on") or re.match(r"\s*(javascript|data:text)", value or "", re.IGNORECASE):
                self.acts[f"{name}={value}"] += 1


def _acts(page: str) -> Counter[str]:
    parser = _Page()
    parser.feed(page)
    return parser.acts


def payloads(checkout: Path, folder: Path, texts: Sequence[str] = PAYLOADS) -> dict[str, Any]:
    """Each text in every text field of a record's run part, and by itself in every text field of a spec, in front of
    every sink: terminal, CSV, report and LaTeX. Nothing of it is a command there."""
    committed = list(take_snapshot(Store(checkout / "results")).values())
    like = [r for r in committed if r.kind == "finetune" and r.spec["model"]["name"] == "opt_mini"][: len(texts)]
    clean, hostile = Store(folder / "clean"), Store(folder / "hostile")
    for number, record in enumerate(like):
        _put(clean, record, record)
        _put(hostile, record, replace(record, run=with_text(record.run, texts[number % len(texts)])))
    wrong: list[str] = []
    target = load_target(checkout, "table2")
    acts, pages, trials = [], [], 0
    for store in (clean, hostile):
        snapshot = take_snapshot(store)
        assert len(snapshot) == len(like), snapshot.troubles[:3]
        tex: list[str] = []

        def place(artefact: Any, tex: list[str] = tex) -> bytes:
            tex += [text for path, text in artefact_texts(artefact, folder) if path.suffix == ".tex"]
            return b""

        page = report_text([target], snapshot, store.root, place=place)
        acts.append(_acts(page))
        pages.append((page, "".join(tex)))
    wrong += [f"report: {act}" for act in acts[1] - acts[0]]
    wrong += [
        f"LaTeX: {text!r}"
        for text in texts
        if text.startswith("\\") and text in pages[1][1] and text not in pages[0][1]
    ]
    trials += 2 * len(texts)
    for text in texts:
        for record in _with_spec(like[0], text):
            _put(hostile, like[0], record)
            trials += 1
            wrong += [f"show {record.id} ({text!r}): {line}" for line in _said(["show", record.id], hostile)]
    for words in (
        ["list", "runs"],
        ["status", "table2"],
        ["trace", "table2", "nora/cb"],
        ["export", "--out", f"{folder}/out"],
    ):
        trials += 1
        wrong += [f"{words[0]}: {line}" for line in _said(words, hostile)]
    with (folder / "out" / "records.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            wrong += [f"CSV: {cell!r:.60}" for cell in row if cell[:1] in tuple("=+-@\t\r") and not _number(cell)]
    return {"trials": trials, "passed": trials - len(wrong), "payloads": len(texts), "wrong": wrong[:20]}


def _number(cell: str) -> bool:
    with suppress(ValueError):
        float(cell)
        return True
    return False


def _put(store: Store, like: Record, record: Record) -> None:
    path = store.record_path(record.kind, record.id)
    path.parent.mkdir(parents=True)
    path.write_text(record.to_json(), encoding="utf-8")
    for file in like.result["files"].values():
        if like.folder is not None and (like.folder / file["name"]).is_file():
            shutil.copy(like.folder / file["name"], path.parent)


def with_text(run: Mapping[str, Any], text: str) -> dict[str, Any]:
    fields = dict.fromkeys(
        ("host", "device", "cpu", "machine", "commit", "python", "job", "git", "version", "new"), text
    )
    return {**run, **fields, "tags": [text], "libraries": {**run["libraries"], text: text}}


def _with_spec(record: Record, text: str) -> Iterator[Record]:
    """The record with the text in the place of each text of its spec in turn, where the spec is still one."""
    for key in _keys(dict(record.spec)):
        group, _, name = key.partition(".")
        part = record.spec.get(group)
        if not isinstance(part, dict) or not isinstance(part.get(name), str):
            continue
        spec = {**record.spec, group: {**part, name: text}}
        with suppress(UserError):
            read_spec(spec)
            yield replace(record, id=run_id(spec), result={**record.result, "spec": spec})


def _said(words: list[str], store: Store) -> list[str]:
    """What a verb printed that no terminal should get."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = cli.main([*words, f"exec.results={store.root}"])
    text = out.getvalue() + err.getvalue()
    return [
        *([f"exit {code}: {text[-100:]!r}"] if code else []),
        *(f"printed {found!r}" for found in _CONTROL.findall(text)[:1]),
    ]

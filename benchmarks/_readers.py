"""Many processes that look at a store while others write it: a part of ``nora bench chaos``."""

from __future__ import annotations

import csv
import io
import json
import mmap
import os
import random
import struct
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from nora import cli
from nora.config.spec import run_id, spec_dict
from nora.files import Json, write_atomic
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import take_snapshot
from nora.tables.target import load_target

WORDS = ("table2", "scale=mini", "task=sst2,wsc,boolq,cb,rte")
VERBS = ("status", "plan", "show", "collate", "export")


class _Shared:
    """What each writer has done, seen by every process: how many records it has made and replaced."""

    def __init__(self, writers: int) -> None:
        self._memory, self.writers = mmap.mmap(-1, 16 * writers), writers

    def note(self, writer: int, made: int, replaced: int) -> None:
        struct.pack_into("qq", self._memory, 16 * writer, made, replaced)

    def made(self, writer: int) -> int:
        return int(struct.unpack_from("q", self._memory, 16 * writer)[0])

    def all_made(self) -> int:
        return sum(map(self.made, range(self.writers)))

    def all_replaced(self) -> int:
        return sum(struct.unpack_from("q", self._memory, 16 * w + 8)[0] for w in range(self.writers))


def _records(checkout: Path) -> tuple[list[Record], dict[str, bytes]]:
    """A record for every run of the table's first stage, with one committed record's numbers, and its files."""
    committed = take_snapshot(Store(checkout / "results")).values()
    like = next(r for r in committed if r.kind == "finetune" and r.spec["task"]["name"] == "cb")
    assert like.folder is not None
    files = {file["name"]: like.folder / file["name"] for file in like.result["files"].values()}
    cells = [cell for cell in load_target(checkout, WORDS[0], list(WORDS[1:])).cells({}) if cell.spec is not None]
    specs = {run_id(cell.spec): cell.spec for cell in cells}  # type: ignore[arg-type]
    made = [replace(like, id=i, result={**like.result, "spec": spec_dict(spec)}) for i, spec in specs.items()]
    return made, {name: path.read_bytes() for name, path in files.items() if path.is_file()}


def _publish(store: Store, record: Record, files: Mapping[str, bytes]) -> None:
    store.run_dir(record.kind, record.id).mkdir(parents=True)
    for name, data in files.items():
        store.publish_file(record.kind, record.id, name, data)
    store.publish_record(record)


def _write(
    store: Store, records: Sequence[Record], files: Mapping[str, bytes], me: int, shared: _Shared, until: float
) -> None:
    """Makes the records one by one over most of the time and replaces those that it has made, over and over."""
    draw, made, replaced, began = random.Random(me), 0, 0, time.monotonic()
    while (now := time.monotonic()) < until:
        if made < len(records) and now - began >= made * 0.9 * (until - began) / len(records):
            _publish(store, records[made], files)
            made += 1
        elif made:
            record = draw.choice(records[:made])
            run = {**record.run, "host": f"writer-{me}-{replaced}"}
            write_atomic(store.record_path(record.kind, record.id), replace(record, run=run).to_json())
            replaced += 1
        shared.note(me, made, replaced)
        time.sleep(draw.uniform(0, 0.02))


def _said(words: Sequence[str], store: Store) -> tuple[int, str, str]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = cli.main([*words, f"exec.results={store.root}"])
    return code, out.getvalue(), err.getvalue()


def _row(row: Mapping[str, str]) -> set[tuple[str, str]]:
    """What a replaced record keeps; no empty cell, since there is a column for what some record has."""
    return {(name, value) for name, value in row.items() if name != "run.host" and value}


def _look(
    verb: str, store: Store, records: Sequence[Sequence[Record]], own: Path, shared: _Shared,
    rows: Mapping[str, set[tuple[str, str]]], draw: random.Random,
) -> list[str]:  # fmt: skip
    """What is wrong with one answer: each count lies between what was there when it was asked and when it was given."""
    before, wrong = shared.all_made(), []
    writer = draw.randrange(shared.writers)
    there = shared.made(writer)
    record = draw.choice(records[writer])
    words: dict[str, list[str]] = {
        "status": [verb, *WORDS, "--json"], "plan": [verb, *WORDS, "--json"], "show": [verb, record.id, "--json"],
        "collate": [verb, *WORDS, "--dry-run"], "export": [verb, "--out", str(own)],
    }  # fmt: skip
    code, out, err = _said(words[verb], store)
    most = shared.all_made() + shared.writers  # one of each may be there and not yet noted
    absent = verb == "show" and records[writer].index(record) >= there
    if code and not (absent and err.count("\n") == 1):
        return [f"exit {code}: {err[-200:]!r}"]
    if err and not code:
        wrong.append(f"told {err[:200]!r}")
    found: list[int] = []
    if verb == "status":
        found = [json.loads(out)["table2"].get("done", 0)]
    elif verb == "plan":
        found = [Counter(one["state"] for one in json.loads(out)["table2"])["done"]]
    elif verb == "show" and not code:
        wrong += [] if json.loads(out)["result"] == record.result else ["another result"]
    elif verb == "export":
        with (own / "records.csv").open(newline="", encoding="utf-8") as file:
            read = list(csv.DictReader(file))
        found = [len(read)]
        wrong += [f"row of {r.get('id')}" for r in read if _row(r) != rows.get(r.get("id", ""))][:1]
    return wrong + [f"{count} counted, {before} to {most} there" for count in found if not before <= count <= most]


def _read(me: int, log: Path, until: float, *given: Any) -> None:
    draw = random.Random(1000 + me)
    with log.open("w", encoding="utf-8") as file:
        verbs = draw.sample(VERBS, len(VERBS))
        while time.monotonic() < until:
            verb = verbs[0]
            verbs = [*verbs[1:], verb]
            try:
                wrong = _look(verb, *given, draw)
            except BaseException:
                wrong = ["traceback: " + " ".join(traceback.format_exc().split())[-300:]]
            file.write(json.dumps([verb, wrong]) + "\n")


def beside_writers(
    checkout: Path, folder: Path, seconds: float, *, readers: int = 32, writers: int = 2
) -> dict[str, Any]:
    """Readers (this process forked, since a new Python per command would be most of the work) that run status, plan,
    show, collate --dry-run and export in turn beside writers that make and replace records: every answer is one that
    was true at a moment between question and answer, no line of warning, no traceback."""
    folder.mkdir()
    every, files = _records(checkout)
    quiet, store = Store(folder / "quiet"), Store(folder / "store")
    for record in every:
        _publish(quiet, record, files)
    code, _, err = _said(["export", "--out", str(folder / "expected")], quiet)
    assert code == 0 and not err, err
    for verb in (["status", *WORDS], ["plan", *WORDS, "--json"], ["collate", *WORDS, "--dry-run"]):  # all is imported
        code, _, err = _said(verb, quiet)
        assert code == 0 and not err, err
    with (folder / "expected" / "records.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["id"]: _row(row) for row in csv.DictReader(file)}
    shared = _Shared(writers)
    shares = [every[number::writers] for number in range(writers)]
    store.root.mkdir()
    until, children = time.monotonic() + seconds, []
    for number in range(writers + readers):
        if child := os.fork():
            children.append(child)
            continue
        try:
            if number < writers:
                _write(store, shares[number], files, number, shared, until)
            else:
                own = folder / f"reader-{number}"
                _read(number, own.with_suffix(".log"), until, store, shares, own, shared, rows)
            os._exit(0)
        finally:
            os._exit(4)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    looks: list[tuple[str, list[str]]] = [
        tuple(json.loads(line)) for log in folder.glob("reader-*.log") for line in log.read_text().splitlines()
    ]
    wrong = [f"{verb}: {what}" for verb, found in looks for what in found]
    wrong += [f"a process ended with {code}" for code in codes if code]
    by: dict[str, Json] = {
        verb: {"trials": sum(v == verb for v, _ in looks), "passed": sum(v == verb and not w for v, w in looks)}
        for verb in VERBS
    }
    return {
        "trials": len(looks), "passed": sum(not found for _, found in looks), "readers": readers, "writers": writers,
        "made": shared.all_made(), "replaced": shared.all_replaced(), "wrong": wrong[:20], "by": by,
    }  # fmt: skip

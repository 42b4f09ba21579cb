"""Fifty stores that somebody, or a dying disk, has spoilt: every verb says a line and ends, never by a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nora import cli
from nora.config.spec import run_id
from nora.errors import RunFailed
from nora.files import canonical_json, sha256_bytes
from nora.kinds import compose_run
from nora.launch.plan import run_progress
from nora.launch.profile import Resources
from nora.launch.queue import why
from nora.launch.submission import Array, create, load, submissions, unreadable
from nora.store.attempt import Job
from nora.store.runs import Store
from nora.store.states import State, run_state, take_snapshot
from nora.tables.target import load_target

WORDS = ["scale=smoke", "task=cb", "seed=0", "method=lora"]
Spoil = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def whole(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with its record, and the submission of another."""
    store = tmp_path_factory.mktemp("whole")
    assert cli.main(["launch", "table2", *WORDS, f"exec.results={store}", "exec.processes=1"]) == 0
    (cell,) = load_target(checkout, "table2", [*WORDS[:2], "seed=1", "method=lora"]).cells({})
    words = ["exec=slurm", "exec.profile=testbed", "exec.code=live", f"exec.results={store}"]
    array = Array("x", Resources(gpus=0, cpus=1, mem_gb=1.0, time_min=1), ((str(cell.id),),))
    settings = compose_run(checkout, [*WORDS, *words])[1]
    one = {str(cell.id): 0}
    submission = create(
        store, target="table2", arrays=[array], cells={str(cell.id): cell}, dead_up_to=one, failures_allowed=one,
        settings=settings, code=checkout, commit="0" * 40, requeue=True,
    )  # fmt: skip
    (submission.folder / "array-0.json").write_text(json.dumps({"job": "1", "cluster": "older", "user": "root"}))
    return store


def _text(text: str | bytes) -> Spoil:
    def spoil(run: Path, store: Path) -> None:
        (run / "record.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def _value(*path: str, to: Any) -> Spoil:
    """A record that is whole by its own hash and has another value at a path."""

    def spoil(run: Path, store: Path) -> None:
        body = json.loads((run / "record.json").read_text())
        node = body
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = to
        if isinstance(body["result"], dict):
            body["result_sha256"] = sha256_bytes(canonical_json(body["result"]).encode())
        (run / "record.json").write_text(json.dumps(body))

    return spoil


def _attempt(name: str, text: str) -> Spoil:
    """No record, and a spoilt file of its attempt."""

    def spoil(run: Path, store: Path) -> None:
        (run / "record.json").unlink()
        (run / "attempts" / "0001" / "finished").unlink()
        (run / "attempts" / "0001" / name).write_text(text)

    return spoil


def _submission(name: str, text: str) -> Spoil:
    def spoil(run: Path, store: Path) -> None:
        (folder,) = (store / "submissions").iterdir()
        if name == "submission.json":
            (folder / "submission.copy.json").unlink()
        (folder / name).write_text(text)

    return spoil


def _folder_for_record(run: Path, store: Path) -> None:
    (run / "record.json").unlink()
    (run / "record.json").mkdir()


def _loop(run: Path, store: Path) -> None:
    (run / "record.json").unlink()
    (run / "record.json").symlink_to("record.json")


def _file_for_attempts(run: Path, store: Path) -> None:
    (run / "record.json").unlink()
    shutil.rmtree(run / "attempts")
    (run / "attempts").write_text("")


def _file_for_an_attempt(run: Path, store: Path) -> None:
    (run / "record.json").unlink()
    (run / "attempts" / "0002").write_text("")


def _folder_for_owner(run: Path, store: Path) -> None:
    _attempt("x", "")(run, store)
    (run / "attempts" / "0001" / "owner.json").unlink()
    (run / "attempts" / "0001" / "owner.json").mkdir()


def _instead(name: str, make: Callable[[Path], Any]) -> Spoil:
    """Something that is no regular file in the place of a record, a file of its attempt or of the submission."""

    def spoil(run: Path, store: Path) -> None:
        if name == "record.json":
            path = run / name
        elif name in ("submission.json", "array-0.json"):
            (folder,) = (store / "submissions").iterdir()
            path = folder / name
        else:
            _attempt(name, "")(run, store)
            path = run / "attempts" / "0001" / name
        path.unlink(missing_ok=True)
        make(path)

    return spoil


def _lacking(*path: str) -> Spoil:
    """A record that is whole by its own hash and lacks a key."""

    def spoil(run: Path, store: Path) -> None:
        body = json.loads((run / "record.json").read_text())
        node = body
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]
        body["result_sha256"] = sha256_bytes(canonical_json(body["result"]).encode())
        (run / "record.json").write_text(json.dumps(body))

    return spoil


def _replaced(old: str, new: str) -> Spoil:
    def spoil(run: Path, store: Path) -> None:
        path = run / "record.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return spoil


_DEEP, _LONG = "[" * 10_000 + "]" * 10_000, "9" * 5_000
_BAD_JSON = {
    "null": "null", "list": "[]", "digits": f'{{"job": {_LONG}}}', "deep": _DEEP, "surrogate": '{"job": "\\ud800"}',
    "overflow": '{"pid": 1e999, "job": 1e999}', "twice": '{"job": "1", "job": "2"}',
}  # fmt: skip


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _strange_names(run: Path, store: Path) -> None:
    for name in ("with space", "ünï", "a'b\"c", "..x", "-n", "new\nline"):
        shutil.copytree(run, run.parent / name)
        (store / "runs" / name).mkdir()


def _kinds_are_files(run: Path, store: Path) -> None:
    shutil.rmtree(store / "runs")
    (store / "runs").mkdir()
    (store / "runs" / "finetune").write_text("")


def _runs_is_a_file(run: Path, store: Path) -> None:
    shutil.rmtree(store / "runs")
    (store / "runs").write_text("")


def _submissions_is_a_file(run: Path, store: Path) -> None:
    shutil.rmtree(store / "submissions")
    (store / "submissions").write_text("")


def _a_pipe_for_a_file(run: Path, store: Path) -> None:
    (path,) = run.glob("predictions*")
    path.unlink()
    path.symlink_to("/dev/null")


def _predictions_are_no_gzip(run: Path, store: Path) -> None:
    (path,) = run.glob("predictions*")
    path.write_bytes(b"no gzip")
    _value("result", "files", "predictions", "sha256", to=sha256_bytes(b"no gzip"))(run, store)


def _another_kind(run: Path, store: Path) -> None:
    shutil.move(run.parent, run.parent.parent / "factorize")


CASES: dict[str, Spoil] = {
    "empty": _text(""), "half": _text('{"schema": 1, "id'), "a list": _text("[]"), "null": _text("null"),
    "a number": _text("7"), "no text": _text(b"\xff\xfe\x00"), "NaN": _text('{"schema": NaN}'),
    "deep": _text("[" * 100_000), "long digits": _text("9" * 6000), "zeros": _text(b"\0" * 4096),
    "schema text": _value("schema", to="1"), "schema newer": _value("schema", to=2),
    "schema true": _value("schema", to=True),
    "id number": _value("id", to=7), "id other": _value("id", to="0" * 16), "run list": _value("run", to=[]),
    "run empty": _value("run", to={}), "result list": _value("result", to=[]),
    "files list": _value("result", "files", to=[]), "file number": _value("result", "files", "predictions", to=5),
    "file outside": _value("result", "files", "predictions", "name", to="../../../../etc/passwd"),
    "metrics list": _value("result", "metrics", to=[]), "no test": _value("result", "metrics", to={}),
    "test text": _value("result", "metrics", "test", to={"accuracy": "much"}),
    "proof text": _value("result", "proof", to="proved"), "status": _value("result", "status", to="perfect"),
    "status list": _value("result", "status", to=[]), "diverged nowhere": _value("result", "status", to="diverged"),
    "attempt of run": _value("run", "attempt", to="first"), "libraries": _value("run", "libraries", to=3),
    "wall": _value("run", "wall_seconds", to="long"),
    "owner list": _attempt("owner.json", "[]"), "owner text pid": _attempt("owner.json", '{"pid": "x"}'),
    "owner null": _attempt("owner.json", "null"), "failed list": _attempt("failed.json", "[]"),
    "interrupted text": _attempt("interrupted.json", '"x"'), "journal noise": _attempt("journal.jsonl", "[]\n{}\n7\n"),
    "folder": _folder_for_record, "loop": _loop, "attempts file": _file_for_attempts,
    "attempt file": _file_for_an_attempt,
    "owner folder": _folder_for_owner, "names": _strange_names, "kind file": _kinds_are_files,
    "runs file": _runs_is_a_file,
    "submissions file": _submissions_is_a_file, "device": _a_pipe_for_a_file, "no gzip": _predictions_are_no_gzip,
    "other kind": _another_kind, "submission list": _submission("submission.json", "[]"),
    "submission null": _submission("submission.json", '{"content": null, "sha256": 3}'),
    "overflow": _replaced('"schema": 1', '"schema": 1, "x": 1e999'), "twice": _replaced('"id":', '"id": "x", "id":'),
    "surrogate": _replaced('"run": {', '"run": {"host": "\\ud800",'),
    "no status": _lacking("result", "status"), "no kind": _lacking("result", "spec", "kind"),
    "record deep": _text(_DEEP), "record digits": _text('{"schema": ' + _LONG + "}"),
    "record pipe": _instead("record.json", os.mkfifo), "owner pipe": _instead("owner.json", os.mkfifo),
    "record endless": _instead("record.json", _endless), "journal endless": _instead("journal.jsonl", _endless),
    "submission pipe": _instead("submission.json", os.mkfifo), "note endless": _instead("array-0.json", _endless),
    "note list": _submission("array-0.json", "[]"), "note noise": _submission("array-0.json", '{"job": 7}'),
}  # fmt: skip


@pytest.mark.parametrize("spoil", CASES.values(), ids=CASES.keys())
def test_every_verb_says_a_line(spoil: Spoil, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    shutil.copytree(whole, store, symlinks=True)
    (run,) = store.glob("runs/finetune/*")
    identity = run.name
    spoil(run, store)
    place = f"exec.results={store}"
    slurm = ["exec=slurm", "exec.profile=testbed", "exec.code=live"]
    for words in (
        ["plan", "table2", *WORDS], ["plan", "table2", *WORDS, "--json"], ["status", "table2", *WORDS, "--json"],
        ["plan", "table2", *WORDS, *slurm, "--sbatch"], ["verify", "table2", *WORDS], ["collate", "table2", *WORDS],
        ["show", identity], ["why", identity], ["logs", identity], ["diff", identity, identity],
        ["trace", "table2", "lora/cb", *WORDS], ["launch", "table2", *WORDS, "--dry-run"],
        ["list", "runs"], ["export", "--dry-run"],
    ):  # fmt: skip
        code = cli.main([*words, place])
        out, err = capsys.readouterr()
        assert code in (0, 1, 2) and "Traceback" not in out + err, (words, out, err)
    assert cli.main(["merge", str(store), f"exec.results={tmp_path / 'own'}"]) in (0, 1, 2)
    assert os.path.lexists(store)


_OTHERS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "key": (("method", "warp"), 3, "(method.warp: unknown key)"),
    "kind": (("kind",), "teleport", "(kind: given 'teleport')"),
    "protocol": (("protocol", "name"), "future", "(protocol.name: given 'future')"),
    "schema": ((), None, "written by a newer version: its schema is 2, this version reads 1"),
}


@pytest.mark.parametrize("other", _OTHERS)
def test_a_record_of_another_version_stops_nobody(
    other: str, whole: Path, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named in one line, the others count; what is asked of it alone is refused, nothing is run over it."""
    path, value, said = _OTHERS[other]
    shutil.copytree(whole / "runs", tmp_path / "store" / "runs", symlinks=True)
    store = Store(tmp_path / "store")
    (run,) = store.root.glob("runs/finetune/*")
    record = store.read("finetune", run.name)
    assert record is not None
    spec = json.loads(json.dumps({**record.spec, "seed": 1}))
    node = spec
    for key in path[:-1]:
        node = node[key]
    if path:
        node[path[-1]] = value
    strange = replace(record, id=run_id(spec), result={**record.result, "spec": spec}, folder=None)
    store.publish_record(strange)
    for file in run.glob("predictions*"):
        store.publish_file(strange.kind, strange.id, file.name, file.read_bytes())
    there = store.record_path(strange.kind, strange.id)
    if other == "schema":
        there.write_text(json.dumps({**json.loads(there.read_text()), "schema": 2}))
    before, place = there.read_bytes(), f"exec.results={store.root}"
    for code, *words in (
        (0, "plan", "table2", *WORDS), (0, "status", "table2", *WORDS), (0, "collate", "table2", *WORDS),
        (0, "list", "runs"), (0, "export", "--dry-run"), (int(other == "schema"), "verify", "table2", *WORDS),
        (0, "launch", "table2", *WORDS), (0, "trace", "table2", "lora/cb", *WORDS), (0, "show", record.id),
        (0, "why", record.id), (0, "diff", record.id, record.id), (0, "why", strange.id), (2, "repeat", strange.id),
    ):  # fmt: skip
        assert cli.main([*words, place]) == code, words
        out, err = capsys.readouterr()
        named = ("plan", "status", "collate", "list", *(["export"] if other == "schema" else []))
        assert words[0] not in named or err.count(said) == err.count("\n") == 1, (words, err)
        assert words[0] != "status" or "1 done" in out
    assert there.read_bytes() == before
    merged = cli.main(["merge", str(store.root), f"exec.results={tmp_path / 'own'}"])
    assert merged == int(other == "schema") and record.id in capsys.readouterr().out
    if other == "schema":
        words = [*WORDS[:2], "seed=1", "method=lora"]
        assert cli.main(["plan", "table2", *words, place]) == 0 and "1 newer" in capsys.readouterr().out
        assert cli.main(["launch", "table2", *words, place]) == 1 and "1 newer" in capsys.readouterr().out
        (cell,) = load_target(checkout, "table2", words).cells({})
        assert cli.main(["run", *cell.overrides, place]) == 2 and said in capsys.readouterr().err
        assert cli.main(["show", strange.id, place]) == 2 and said in capsys.readouterr().err
        assert there.read_bytes() == before and not (there.parent / "attempts").exists()


_NAMES = ("owner.json", "journal.jsonl", "failed.json", "interrupted.json")
EVERY: dict[str, Spoil] = {
    **{f"{name} {what}": _attempt(name, text) for name in _NAMES for what, text in _BAD_JSON.items()},
    **{f"{name} {what}": _submission(name, text) for name in ("submission.json", "array-0.json")
       for what, text in _BAD_JSON.items()},
    **{f"{name} {make.__name__}": _instead(name, make) for name in ("record.json", *_NAMES, "array-0.json")
       for make in (os.mkfifo, os.mkdir, _endless)},
}  # fmt: skip


@pytest.mark.parametrize("spoil", EVERY.values(), ids=EVERY.keys())
def test_a_bad_file_is_one_runs_own_trouble(spoil: Spoil, whole: Path, tmp_path: Path) -> None:
    """Its neighbour counts, every reader ends, and a new attempt publishes."""
    shutil.copytree(whole, tmp_path / "store", symlinks=True)
    store = Store(tmp_path / "store")
    (run,) = store.root.glob("runs/finetune/*")
    record = store.read("finetune", run.name)
    assert record is not None
    spoil(run, store.root)
    neighbour = replace(record, result={**record.result, "spec": {**record.spec, "seed": 7}}, folder=None)
    neighbour = replace(neighbour, id=run_id(neighbour.spec))
    store.publish_record(neighbour)
    for file in run.glob("predictions*"):
        store.publish_file("finetune", neighbour.id, file.name, file.read_bytes())
    assert neighbour.id in take_snapshot(store)
    why(store, run.name, None)
    run_progress(store, "finetune", run.name)
    store.failures("finetune", run.name)
    assert [s.folder for s in submissions(store.root)] or unreadable(store.root)
    for submission in submissions(store.root):
        assert set(map(type, submission.note(0).values())) <= {str}
    attempt = store.new_attempt("finetune", run.name)
    assert attempt.number == 2
    store.publish_record(record)
    assert run_state(store, "finetune", run.name).state is State.DONE


def test_no_bit_of_an_owner_stops_a_reader(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.new_attempt("finetune", "0" * 16, job=Job("12", "nora-table2-1", "site")).path / "owner.json"
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        (found,) = take_snapshot(store).unfinished.values()
        why(store, "0" * 16, None)
        assert found.state in (State.RUNNING, State.FAILED)


def test_a_foreign_submission_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "store", symlinks=True)
    (folder,) = (tmp_path / "store" / "submissions").iterdir()
    other = folder.rename(folder.with_name("beef0000"))
    with pytest.raises(RunFailed, match=f"foreign .*{folder.name}"):
        load(other)


def test_another_submissions_note_of_its_job_is_left_out(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By it a cancel would reach a job that is not ours; one of before they said whose they are counts."""
    shutil.copytree(whole, tmp_path / "store", symlinks=True)
    (folder,) = (tmp_path / "store" / "submissions").iterdir()
    own = load(folder)
    monkeypatch.setattr("nora.launch.slurm.cluster", lambda: "site")
    monkeypatch.setattr("nora.launch.slurm.this_user", lambda: "me")
    own.write_job(0, "12")
    assert own.job(0) == "12"
    note = folder / "array-0.json"
    (folder / "array-1.json").write_bytes(note.read_bytes())
    assert own.note(1) == {} and f"foreign (the note of {own.job_name(0)})" in caplog.text
    note.write_text('{"job": "13"}')
    assert own.job(0) == "13"

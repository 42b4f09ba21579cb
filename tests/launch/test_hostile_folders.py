"""Fifty stores that somebody, or a dying disk, has spoilt: every verb says a line and ends, never by a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nora import cli
from nora.files import canonical_json, sha256_bytes
from nora.kinds import compose_run
from nora.launch.profile import Resources
from nora.launch.submission import Array, create
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
    ):  # fmt: skip
        code = cli.main([*words, place])
        out, err = capsys.readouterr()
        assert code in (0, 1, 2) and "Traceback" not in out + err, (words, out, err)
    assert cli.main(["merge", str(store), f"exec.results={tmp_path / 'own'}"]) in (0, 1, 2)
    assert os.path.lexists(store)

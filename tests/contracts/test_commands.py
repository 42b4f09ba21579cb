"""The verbs through ``nora.cli.main``: exit codes, output shapes, and that reading verbs change nothing."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nora import cli
from nora.files import sha256_file
from nora.store.runs import Store
from nora.store.states import take_snapshot

Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two real smoke runs of the table's cells."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).resolve().parents[2])
        for words in (_cell_words(folder),):
            assert cli.main(["run", *words]) == 0
    yield folder


def _cell_words(folder: Path) -> list[str]:
    return [
        "scale=smoke", "task=cb", "method=lora", "protocol.batch_size=4", "protocol.lr=0.001",
        "measure=[spectrum,zero_shot]", "seed=0", f"exec.results={folder}", "exec.progress=false", "exec.device=cpu",
    ]  # fmt: skip


def _words(store: Path) -> list[str]:
    return ["table2", "scale=smoke", "task=cb", "seed=0", f"exec.results={store}"]


def test_run_says_how_it_ended_and_that_it_was_there(store: Path, capsys: Out) -> None:
    assert cli.main(["run", *_cell_words(store)]) == 0
    out = capsys.readouterr().out
    assert "lora on cb, opt_smoke, seed 0: accuracy" in out and "init proved" in out
    assert "already done, nothing to do" in out and out.count("\n") == 1


def test_plan_and_status(store: Path, capsys: Out) -> None:
    assert cli.main(["plan", *_words(store), "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["table2"]
    assert {c["row"]: c["state"] for c in cells} == {
        "lora": "done", "prefix": "missing", "olora": "missing", "pissa": "missing", "nora": "missing",
        "nora_plus": "missing", "lora_p": "missing",
    }  # fmt: skip
    assert cli.main(["status", *_words(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"table2": {"done": 1, "missing": 6}}
    assert cli.main(["plan", *_words(store)]) == 0
    assert "7 cells: 1 done, 6 missing" in capsys.readouterr().out
    assert cli.main(["status", *_words(store)]) == 0
    assert "left:" in capsys.readouterr().out


def test_launch_dry_run_prints_commands_that_make_exactly_the_missing_runs(
    store: Path, capsys: Out, checkout: Path
) -> None:
    from nora.config.spec import run_id
    from nora.kinds import compose_run

    assert cli.main(["plan", *_words(store), "--json"]) == 0
    missing = {c["id"] for c in json.loads(capsys.readouterr().out)["table2"] if c["state"] == "missing"}
    before = sorted(store.rglob("*"))
    assert cli.main(["launch", *_words(store), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("nora run ") for line in lines)
    assert {run_id(compose_run(checkout, shlex.split(line)[2:])[0]) for line in lines} == missing
    assert sorted(store.rglob("*")) == before


def test_why_and_logs(store: Path, capsys: Out) -> None:
    (path,) = store.glob("runs/finetune/*")
    where = f"exec.results={store}"
    assert cli.main(["logs", path.name, where]) == 0
    assert str(path / "attempts" / "0001" / "journal.jsonl") in capsys.readouterr().out
    assert cli.main(["logs", path.name, where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["id"] == path.name and json.loads(found["logs"][0]["tail"][1])["step"] == 1
    assert json.loads(found["logs"][0]["tail"][0]) == {"run": path.name, "attempt": "0001"}, "whose journal it is"
    assert cli.main(["why", path.name, where]) == 0
    assert ", test 0/1: published its record" in capsys.readouterr().out, "the phase it was last in"
    assert cli.main(["why", path.name, where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"


def test_collate_writes_three_files_or_none(store: Path, capsys: Out) -> None:
    assert cli.main(["collate", *_words(store), "--dry-run"]) == 0
    assert "SMOKE TEST" in capsys.readouterr().out and not (store / "tables").exists()
    assert cli.main(["collate", *_words(store)]) == 0
    assert sorted(p.name for p in (store / "tables").iterdir()) == [
        "table2.smoke.csv", "table2.smoke.md", "table2.smoke.tex",
    ]  # fmt: skip


def test_trace_leads_from_a_cell_to_its_run(store: Path, capsys: Out) -> None:
    words = [f"exec.results={store}", "scale=smoke", "seed=0", "task=cb"]
    assert cli.main(["trace", "table2", "lora/cb", *words, "--json"]) == 0
    traced = json.loads(capsys.readouterr().out)
    (run,) = traced["runs"]
    (record,) = take_snapshot(Store(store)).values()
    assert (run["id"], run["state"], run["test"]) == (record.id, "done", dict(record.metrics["test"]))
    assert "kaiming passed" in run["proof"] and run["adapter_sha256"] == record.result["files"]["adapter"]["sha256"]
    assert cli.main(["trace", "table2", "lora/cb", *words]) == 0
    assert f"repeat   {run['command']}" in capsys.readouterr().out
    assert cli.main(["trace", "table2", "lora/xyz", *words]) == 2
    assert "CELL: given 'lora/xyz'" in capsys.readouterr().err


def test_show(store: Path, capsys: Out) -> None:
    (record,) = take_snapshot(Store(store)).values()
    assert cli.main(["show", record.id[:6], f"exec.results={store}"]) == 0
    assert "init proof" in capsys.readouterr().out
    assert cli.main(["show", record.id, f"exec.results={store}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == record.id
    assert cli.main(["show", "zzzz", f"exec.results={store}"]) == 2
    assert "0 records" in capsys.readouterr().err


def test_verify_notices_what_was_tampered_with(store: Path, capsys: Out) -> None:
    assert cli.main(["verify", *_words(store)]) == 0
    assert "1 records checked, 0 problems" in capsys.readouterr().out
    (record,) = take_snapshot(Store(store)).values()
    file = Store(store).run_dir("finetune", record.id) / record.result["files"]["predictions"]["name"]
    original = file.read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(original).decode().splitlines()]
    rows[0]["prediction"] = (rows[0]["prediction"] + 1) % 3
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert sha256_file(file) != record.result["files"]["predictions"]["sha256"]
    assert cli.main(["verify", *_words(store), "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "not what its hash says (predictions)" in problem
    file.unlink()
    assert cli.main(["verify", *_words(store)]) == 1
    assert "missing (predictions)" in capsys.readouterr().out
    file.write_bytes(original)
    assert cli.main(["verify", *_words(store)]) == 0


def test_verify_scores_the_stored_predictions_again(tmp_path: Path) -> None:
    from nora.store.verify import rescore

    file = tmp_path / "p.gz"
    rows = [{"prediction": 0, "correct": [0]}, {"prediction": 1, "correct": [0, 1]}, {"prediction": 2, "correct": [0]}]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert rescore(file, "accuracy") == 2 / 3


@pytest.mark.parametrize("words", [["{}", "--cfg", "job"], ["--cfg", "job", "{}"], ["{}", "--cfg=job", "--resolve"]])
def test_flags_of_hydra_stand_before_or_behind_the_overrides(words: list[str], capsys: Out) -> None:
    given = [part for word in words for part in (["scale=smoke", "task=cb"] if word == "{}" else [word])]
    assert cli.main(["run", *given]) == 0
    shown = capsys.readouterr().out
    assert "name: cb" in shown and "results: results/mine" in shown


def test_a_multirun_warns_as_a_run_does(checkout: Path, tmp_path: Path) -> None:
    """In a process of its own: Hydra sets up the logging of all of it."""
    words = ["-m", "scale=smoke", "task=cb", "method=lora,nora", "protocol.epochs=1", f"exec.results={tmp_path}"]
    command = [sys.executable, "-m", "nora", "run", *words, "exec.progress=false"]
    subprocess.run(command, cwd=checkout, capture_output=True, check=True)
    broken = sorted(tmp_path.glob("runs/finetune/*/record.json"))[0]
    broken.write_text("{")
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    assert f"{broken}: not valid JSON" in done.stderr and "the run is repeated" in done.stderr
    assert done.stdout.count("already done") == 1


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("co", {"collate", "completion"}),
        ("plan table2 task=c", {"task=cb", "task=cat_toy", "task=choice", "task=commonsense"}),
        ("run method=nora_p", {"method=nora_plus"}),
        ("launch table2 protocol.l", {"protocol.lr="}),
        ("collate al", {"all"}),
    ],
)
def test_completion_in_a_real_bash(typed: str, offered: set[str], checkout: Path) -> None:
    words = " ".join(f'"{word}"' for word in ["nora", *typed.split(" ")])
    script = (
        "source <(nora completion bash)\n"
        f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()\n"
        '_nora_completion nora; [[ $COMP_WORDBREAKS == *=* ]] || printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        cwd=checkout,
        env={**os.environ, "PATH": path},
        check=True,
    )
    assert set(done.stdout.split()) == offered, done.stderr


def test_completion_for_zsh_is_a_script(capsys: Out) -> None:
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef nora")


def test_wrong_names_are_the_users_error(capsys: Out, tmp_path: Path) -> None:
    for words, part in (
        (["bench", "nothing"], "NAME: given 'nothing'"),
        (["pretrain", "nothing", "--corpus", str(tmp_path)], "MODEL: given 'nothing', allowed gemma_mini, "),
        (["pretrain", "opt_mini", "--corpus", str(tmp_path)], "none of corpus_books"),
        (["plan", "seed=0"], "a TARGET is required"),
        (["plan"], "Missing argument"),
        (["plan", "table2", "exec.threads=0"], "exec.threads: given 0"),
    ):
        assert cli.main(words) == 2
        err = capsys.readouterr().err
        assert part in err and err.count("\n") == 1


def test_outside_a_checkout_the_package_installed_in_place_is_used_or_named(tmp_path: Path) -> None:
    from nora.workspace import find_checkout

    assert (find_checkout(tmp_path) / "conf" / "config.yaml").is_file()


def test_what_one_runs_stays_apart(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    """``nora run`` without a place: its record is found by its id, and no committed folder has it."""
    copy = tmp_path / "checkout"
    for name in ("src", "conf", "assets", "data"):
        copy.mkdir(exist_ok=True)
        (copy / name).symlink_to(checkout / name)
    monkeypatch.chdir(copy)
    words = ["scale=smoke", "task=cb", "method=lora", "exec.progress=false", "exec.device=cpu"]
    assert cli.main(["run", *words]) == 0
    identity = capsys.readouterr().out.split()[0]
    (path,) = copy.glob("results/**/record.json")
    assert path == copy / "results" / "mine" / "runs" / "finetune" / identity / "record.json"
    for verb in ("show", "why", "logs"):
        assert cli.main([verb, identity[:8]]) == 0
        assert identity in capsys.readouterr().out
    ignored = subprocess.run(["git", "check-ignore", "-q", f"results/mine/runs/finetune/{identity}"], cwd=checkout)
    assert ignored.returncode == 0
    assert cli.main(["run", *words, f"exec.results={tmp_path / 'there'}"]) == 0
    assert len(list((tmp_path / "there").glob("runs/*/*/record.json"))) == 1
    assert cli.main(["run", "-m", *words, "seed=1"]) == 0
    assert len(list(copy.glob("results/mine/runs/*/*/record.json"))) == 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EROFS, errno.EIO, errno.ENOSPC])
def test_an_error_of_the_system_is_one_line(
    number: int, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(directory: Path, data: object) -> Path:
        raise OSError(number, os.strerror(number), str(directory / "x"))

    monkeypatch.setattr("nora.files._write_temporary", refused)
    assert cli.main(["collate", *_words(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and os.strerror(number) in err and errno.errorcode[number] in err and "/x: " in err


@pytest.mark.parametrize("words", [["status", "table2"], ["collate", "table2"], ["run", "scale=smoke"], ["export"]])
def test_without_file_descriptors_there_is_one_line(words: list[str], checkout: Path, tmp_path: Path) -> None:
    """Files that are opened one after the other need few; where there is none at all no verb ends in a traceback."""
    code = (
        "import resource, sys; from nora.cli import main; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); "
        f"sys.exit(main({[*words, f'exec.results={tmp_path}']!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=checkout, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Too many open files" in done.stderr, done.stderr


def test_an_installed_package_works_elsewhere_with_the_checkout_named(checkout: Path, tmp_path: Path) -> None:
    """doctor and completion anywhere, the rest where NORA_CHECKOUT says; without it one line."""
    shutil.copytree(checkout / "src" / "nora", tmp_path / "site" / "nora", ignore=shutil.ignore_patterns("__pycache__"))

    def asked(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nora", *words], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), **more},
        )  # fmt: skip

    done = asked("list", "tables")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "NORA_CHECKOUT names it" in done.stderr
    done = asked("list", "tables", NORA_CHECKOUT=str(checkout))
    assert done.returncode == 0 and done.stdout.startswith("ablation")
    assert "NORA_CHECKOUT: /" in asked("list", "tables", NORA_CHECKOUT="/").stderr
    assert "none here: NORA_CHECKOUT names one" in asked("doctor").stdout
    assert "_nora_completion" in asked("completion", "bash").stdout

"""Hydra as people know it: each kind of sweep, its flags, a working directory nobody may write to, ``python -O``."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nora import cli
from nora.config.compose import choices, expand_sweep
from nora.errors import UserError

Out = pytest.CaptureFixture[str]
SMOKE = ["scale=smoke", "task=cb", "protocol.epochs=1", "exec.device=cpu", "exec.progress=false"]


def _values(word: str, checkout: Path) -> list[str]:
    return [job[0].partition("=")[2] for job in expand_sweep([word], checkout / "conf")]


def test_every_sweep_has_hydras_own_values(checkout: Path) -> None:
    methods = choices(checkout / "conf", "method")
    assert _values("method=glob(*)", checkout) == methods
    assert _values("method=glob([nora*,lora],exclude=nora_plus)", checkout) == ["lora", "nora"]
    assert _values("method=choice(lora,nora)", checkout) == _values("method=lora,nora", checkout) == ["lora", "nora"]
    assert _values("seed=range(1,6,2)", checkout) == ["1", "3", "5"]
    assert _values("seed=shuffle(range(3))", checkout) and sorted(_values("seed=shuffle(range(3))", checkout)) == [
        *"012"
    ]
    for word, said in (("method=glob(xyz*)", "no choice of method is like that"),
                       ("protocol.lr=interval(1e-3,1e-2)", "an interval has no list of values")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            _values(word, checkout)


@pytest.mark.parametrize(
    ("words", "jobs"),
    [(["method=glob([lora,nora])"], 2), (["protocol.max_steps=1,2"], 2),
     (["exec.micro_batch_size=1,2", "protocol.max_steps=1"], 1), (["'seed=range(0,2)'", "protocol.max_steps=1"], 2)],
    ids=str,
)  # fmt: skip
def test_a_multirun_takes_what_a_run_takes(words: list[str], jobs: int, tmp_path: Path, capsys: Out) -> None:
    words = [word.strip("'") for word in words]
    assert cli.main(["run", "-m", *SMOKE, *words, f"exec.results={tmp_path}"]) == 0
    out = capsys.readouterr().out
    told = [line for line in out.splitlines() if line.startswith("#")]
    assert f"{jobs} different runs" in out and len(told) >= jobs
    assert all(" done " in line and "accuracy 0." in line for line in told), "its result, also where a job made it"
    assert len(list(tmp_path.glob("runs/finetune/*/record.json"))) == jobs


@pytest.fixture
def loggers() -> Iterator[None]:
    """--info sets every logger to write to the terminal of the moment."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("loggers")
def test_its_flags(capsys: Out) -> None:
    for flags, said in ((["--info", "searchpath"], "conf"), (["-cn", "config", "--cfg", "job"], "kind: finetune")):
        assert cli.main(["run", *SMOKE, *flags]) == 0
        assert said in capsys.readouterr().out
    assert cli.main(["run", *SMOKE, "--help"]) == 0 and "nora run -m method=lora,nora" in capsys.readouterr().out
    assert cli.main(["run", *SMOKE, "-cn", "nothing"]) == 2
    assert "Cannot find primary config 'nothing'" in capsys.readouterr().err


def test_words_in_quotes(tmp_path: Path, capsys: Out) -> None:
    """A value in quotes is Hydra's text, whoever reads it; a whole word in quotes is none, and said so plainly."""
    for words in (["method=nora", "task=cb"], ["method='nora'", 'task="cb"', "seed='0'"]):
        assert cli.main(["plan", "table2", "scale=smoke", f"exec.results={tmp_path}", *words, "seed=0"]) == 0
        assert " 1 waits" in capsys.readouterr().out
    assert cli.main(["run", "'method=nora'"]) == 2
    assert capsys.readouterr().err == "nora: 'method=nora' (an override is key=value)\n"


def test_info_is_printed_once(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nora", "run", *SMOKE, "--info", "searchpath"], cwd=checkout, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("structured://") == 1, done.stdout


def test_a_multirun_where_nothing_can_be_written_and_nothing_is_asserted(checkout: Path, tmp_path: Path) -> None:
    words = ["run", "-m", *SMOKE, "method=lora,nora", "protocol.max_steps=1", f"exec.results={tmp_path}"]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout / "src"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-O", "-m", "nora", *words], cwd="/sys", env=surroundings, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "2 jobs: 2 done" in done.stdout, done.stderr
    assert list(tmp_path.glob("nora-multirun-*")), "Hydra's notes lie elsewhere"


def test_a_place_for_results_is_seen_from_where_one_stands(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *SMOKE, "protocol.max_steps=1", "exec.results=mine/results"]) == 0
    (record,) = tmp_path.glob("mine/results/runs/finetune/*/record.json")
    assert f"[{record.parent}]" in capsys.readouterr().out
    assert cli.main(["show", record.parent.name, "exec.results=mine/results"]) == 0
    assert not (checkout / "mine").exists()


def test_a_command_that_repeats_a_run_names_the_folder_it_needs(tmp_path: Path, capsys: Out) -> None:
    words = ["trace", "fig1", "GD, small start", "--config-dir", str(tmp_path), f"exec.results={tmp_path}"]
    assert cli.main(words) == 0
    assert f"--config-dir {tmp_path}" in capsys.readouterr().out


def test_optuna_looks_for_a_rate_and_every_trial_is_a_record(checkout: Path, tmp_path: Path) -> None:
    """With the plugin installed, in a process of its own: its libraries warn."""
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "scale=smoke", "task=cb",
             "hydra.sweeper.sampler.seed=1", f"exec.results={tmp_path / 'store'}"]  # fmt: skip

    def swept(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nora", "run", "-m", *words, *more], cwd=checkout, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    done = swept("protocol.lr=interval(1e-4,1e-2)")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    *told, best = done.stdout.splitlines()
    records = [json.loads(path.read_text())["result"] for path in tmp_path.glob("store/runs/finetune/*/record.json")]
    losses = {record["metrics"]["dev"]["loss"]: record["spec"]["protocol"]["lr"] for record in records}
    assert len(told) == len(records) == len(losses) == 3 and all("init proved" in line for line in told)
    assert best == f"best: {min(losses):.6g} with protocol.lr={losses[min(losses)]}"
    for wrong, said in (("protocol.lrr=3", "did you mean protocol.lr?"), ("task=cbb", "did you mean cb?")):
        done = swept("protocol.lr=interval(1e-4,1e-2)", wrong)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr


def test_a_sweeper_that_is_not_installed_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "hydra/sweeper=ax", "protocol.lr=interval(1e-4,1e-2)", "scale=smoke"]) == 2
    assert capsys.readouterr().err == (
        "nora: hydra/sweeper=ax: not installed; Optuna's is pip install hydra-optuna-sweeper\n"
    )

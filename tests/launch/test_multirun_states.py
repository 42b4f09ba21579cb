"""A multirun tells the truth: a line per job with its state, every failure, a run that another process has. The runs
really fail: one diverges, the folders of two cannot be made, the process of one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nora import cli
from nora.config.spec import run_id
from nora.kinds import compose_run
from nora.store.runs import Store
from nora.store.states import run_state

Out = pytest.CaptureFixture[str]


def _words(folder: Path) -> list[str]:
    return ["scale=smoke", "task=cb", f"exec.results={folder}", "exec.progress=false", "exec.device=cpu"]


def _start(checkout: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nora", "run", *words],
        cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _ids(checkout: Path, folder: Path, *runs: str) -> list[str]:
    return [run_id(compose_run(checkout, [*_words(folder), *run.split()])[0]) for run in runs]


def test_every_job_is_told_and_one_failure_costs_the_others_nothing(
    checkout: Path, tmp_path: Path, capsys: Out
) -> None:
    """Two cannot write, one diverges, two are done; one runs in a process of its own."""
    folder, store = tmp_path / "results", Store(tmp_path / "results")
    live = _start(checkout, *_words(folder), "method=nora", "protocol.epochs=9999")
    try:
        pissa, olora, lora, wild, running = _ids(
            checkout, folder, "method=pissa", "method=olora", "method=lora", "method=lora protocol.lr=1e30",
            "method=nora protocol.epochs=9999",
        )  # fmt: skip
        while not store.attempts("finetune", running) or not store.attempts("finetune", running)[0].journal.is_file():
            assert live.poll() is None
            time.sleep(0.1)
        for blocked in (pissa, olora):
            (folder / "runs" / "finetune" / blocked).write_text("a file where the run's folder would be")
        assert cli.main(["run", "-m", *_words(folder), "method=pissa,olora,lora"]) == 1
        out, err = capsys.readouterr()
        for number, blocked in enumerate((pissa, olora)):
            assert f"nora: run {blocked}: no attempt could be started: [Errno 20] Not a directory" in err
            assert f"#{number} damaged  {blocked}" in out
        assert f"#2 done     {lora}" in out and "3 jobs: 2 damaged, 1 done" in out
        default = compose_run(checkout, _words(folder))[0].protocol.lr  # type: ignore[union-attr]
        assert cli.main(["run", "-m", *_words(folder), "method=lora", f"protocol.lr=1e30,{default}"]) == 1
        out, err = capsys.readouterr()
        assert f"#0 diverged {wild}" in out and f"#1 done     {lora}" in out and "2 jobs: 1 diverged, 1 done" in out
        assert f"nora: run {wild} diverged" in err and "already done, nothing to do" in out
        assert run_state(store, "finetune", lora).state == "done"
        (blocked,) = _ids(checkout, folder, "method=pissa protocol.epochs=9999")
        (folder / "runs" / "finetune" / blocked).write_text("")
        assert cli.main(["run", "-m", *_words(folder), "method=pissa,nora", "protocol.epochs=9999"]) == 1
        out = capsys.readouterr().out
        assert f"#1 running  {running}" in out and "2 jobs: 1 damaged, 1 running" in out
        assert cli.main(["run", "-m", *_words(folder), "method=nora", "protocol.epochs=9999"]) == 0
        assert "is running: attempt 1 on" in capsys.readouterr().out
    finally:
        live.kill()
        live.communicate()


@pytest.mark.slow
def test_a_jobs_process_is_killed_and_the_others_are_kept(checkout: Path, tmp_path: Path) -> None:
    """Each job in a process of its own (Hydra's submitit launcher): SIGKILL to one while it trains."""
    folder, store = tmp_path / "results", Store(tmp_path / "results")
    lora, nora = _ids(checkout, folder, "method=lora protocol.epochs=60", "method=nora protocol.epochs=60")
    words = ["method=lora,nora", "protocol.epochs=60", "hydra.launcher.timeout_min=5"]
    multirun = _start(
        checkout, "-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}/sweep", *_words(folder), *words
    )
    while not store.attempts("finetune", nora) or not store.attempts("finetune", nora)[0].journal.is_file():
        assert multirun.poll() is None
        time.sleep(0.02)
    os.kill(store.attempts("finetune", nora)[0].owner()["pid"], signal.SIGKILL)
    out, err = multirun.communicate()
    assert multirun.returncode == 1 and "has not produced any output" in err, err
    assert f"#0 done     {lora}" in out and f"#1 failed   {nora}" in out and "ended without a word (killed?)" in out
    assert out.splitlines()[-1] == "2 jobs: 1 done, 1 failed"
    again = _start(checkout, "-m", *_words(folder), *words[:2])
    out, err = again.communicate()
    assert again.returncode == 0 and out.splitlines()[-1] == "2 jobs: 2 done", err

"""A multirun tells the truth: a line per job with its state, both failures, a run that another process has."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nora import cli
from nora.config.spec import run_id
from nora.kinds import compose_run, few_shot
from nora.store.runs import Store
from nora.store.states import run_state

Out = pytest.CaptureFixture[str]


def _words(folder: Path) -> list[str]:
    return ["scale=smoke", "task=cb", f"exec.results={folder}", "exec.progress=false", "exec.device=cpu"]


def test_every_job_is_told_and_one_failure_costs_the_others_nothing(
    checkout: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two fail, one is done, one runs in a process of its own."""
    live = subprocess.Popen(
        [sys.executable, "-m", "nora", "run", *_words(tmp_path), "method=nora", "protocol.epochs=9999"],
        cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout / "src")}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    store = Store(tmp_path)
    try:
        while not list(tmp_path.glob("runs/*/*/attempts/0001/journal.jsonl")):
            assert live.poll() is None
            time.sleep(0.1)
        real = few_shot.prepare

        def prepare(spec: few_shot.Spec, context: object) -> object:
            if spec.method.name in ("pissa", "olora"):
                raise OSError(f"no more disk for {spec.method.name}")
            return real(spec, context)  # type: ignore[arg-type]

        monkeypatch.setattr(few_shot, "prepare", prepare)
        ids = {
            name: run_id(compose_run(checkout, [*_words(tmp_path), f"method={name}", *more])[0])
            for name, more in {"pissa": [], "olora": [], "lora": [], "nora": ["protocol.epochs=9999"]}.items()
        }
        assert cli.main(["run", "-m", *_words(tmp_path), "method=pissa,olora,lora"]) == 1
        out, err = capsys.readouterr()
        assert "no more disk for pissa" in err and "no more disk for olora" in err
        assert f"#0 failed   {ids['pissa']}" in out and f"#1 failed   {ids['olora']}" in out
        assert f"#2 done     {ids['lora']}" in out and "3 jobs: 2 failed, 1 done" in out
        assert run_state(store, "finetune", ids["lora"]).state == "done"
        assert cli.main(["run", "-m", *_words(tmp_path), "method=pissa,nora", "protocol.epochs=9999"]) == 1
        out, err = capsys.readouterr()
        assert f"#1 running  {ids['nora']}" in out and "2 jobs: 1 failed, 1 running" in out and "pissa" in err
        assert cli.main(["run", "-m", *_words(tmp_path), "method=nora", "protocol.epochs=9999"]) == 0
        assert "is running: attempt 1 on" in capsys.readouterr().out
    finally:
        live.kill()
        live.wait()

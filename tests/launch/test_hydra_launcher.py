"""Hydra's own submitit launcher still runs our multirun (here its local kind: the same pickles, no scheduler)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nora.runs.store import Store


@pytest.mark.slow
def test_a_multirun_through_submitit_local(checkout: Path, tmp_path: Path) -> None:
    words = [
        "-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", f"hydra.sweep.dir={tmp_path / 'sweep'}",
        "scale=smoke", "task=cb", "method=lora,nora", f"exec.results={tmp_path / 'r'}", "exec.progress=false",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "nora", "run", *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {r.spec["method"]["name"] for r in Store(tmp_path / "r").records()} == {"lora", "nora"}

"""8- and 4-bit bases by bitsandbytes itself, in a process of its own.

`make setup` puts bitsandbytes beside the other packages, not among them: where it can be imported, every import of peft
takes a second more and prints a line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nora import cli

BESIDE = Path(sys.prefix) / "quantized"
PROGRAM = Path(__file__).with_name("quantised_bases.py")


def _run(*words: str) -> str:
    """What a program prints with bitsandbytes beside the packages."""
    assert BESIDE.is_dir(), f"{BESIDE}: not there; `make setup` puts bitsandbytes into it"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BESIDE), *sys.path])}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_quantised_base() -> None:
    passed = [line for line in _run(str(PROGRAM)).splitlines() if line.endswith(" passed")]
    assert passed == ["8 passed", "4 passed", "nf4 passed", "fp4 passed", "loftq passed"]


def test_a_run_starts_by_loftq_where_its_package_is_and_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["method=loftq", "task=cb", "scale=smoke", "seed=0"]
    run = ["-m", "nora.cli", "run", *words, f"exec.results={tmp_path}"]
    assert "init proved" in _run(*run)
    for more, said in (
        ((), "method.init: given loftq, which takes bitsandbytes, not installed here (pip install bitsandbytes)"),
        (("method.bits=5",), "bits: given 5, allowed 4, 8 with init=loftq"),
    ):
        assert cli.main(["run", *words, *more, f"exec.results={tmp_path}/other"]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("other/runs/*/*"))

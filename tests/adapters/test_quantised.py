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

BESIDE = Path(sys.prefix) / "quantized"
PROGRAM = Path(__file__).with_name("quantised_bases.py")


@pytest.mark.parametrize("kind", ["8", "4", "nf4", "fp4"])
def test_the_sketch_reads_the_dequantised_weight(kind: str) -> None:
    assert BESIDE.is_dir(), f"{BESIDE}: not there; `make setup` puts bitsandbytes into it"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BESIDE), *sys.path])}
    command = [sys.executable, str(PROGRAM), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("passed\n"), done.stderr

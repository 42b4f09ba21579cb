"""What shows something starts without torch: measured in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["plan", "table2", "scale=smoke", "task=cb", "seed=0"],
        ["status", "table2", "scale=smoke", "task=cb", "seed=0"],
        ["collate", "--dry-run", "cost", "scale=smoke"],
        ["collate", "--dry-run", "table2", "scale=smoke", "task=cb", "seed=0"],
        ["plan", "table3", "fig7", "scale=paper"],
        ["collate", "--dry-run", "table3", "table6", "scale=smoke"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_torch(words: list[str], checkout: Path, tmp_path: Path) -> None:
    given = words if "--help" in words else [*words, f"exec.results={tmp_path}"]
    code = (
        "import sys\nfrom nora.cli import main\n"
        f"try:\n    code = main({given!r})\nexcept SystemExit as e:\n    code = e.code or 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'wandb', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=checkout, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_python_m_nora_is_the_command(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nora", "plan", "--help"], capture_output=True, text=True, cwd=checkout, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("Usage: nora plan ")

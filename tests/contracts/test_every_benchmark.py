"""Every benchmark still fits the code it measures: it loads, and its quick run prints a table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
NEEDS_A_SCHEDULER = {"chaos", "cluster"}  # tests/launch and tests/runs/test_faults.py run parts of them


def _load(name: str) -> Any:
    source = importlib.util.spec_from_file_location(f"contract_bench_{name}", FOLDER / f"{name}.py")
    assert source is not None and source.loader is not None
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_it_loads(name: str) -> None:
    module = _load(name)
    assert callable(module.run) and callable(module.table)


@pytest.mark.parametrize("name", ["init", "preconditioner", "evaluate", "dreambooth", "factorization"])
def test_the_table_of_the_committed_figures_says_what_was_aimed_at_and_reached(name: str) -> None:
    committed = json.loads((FOLDER.parent / "results" / "bench" / f"{name}.json").read_text())
    lines = _load(name).table(committed["result"]).splitlines()
    verdicts = [line for line in lines if line.strip().startswith(("aim", "target"))]
    assert verdicts and all(": met, " in line or ": NOT met, " in line for line in verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS_A_SCHEDULER])
def test_its_quick_run_prints_a_table(name: str) -> None:
    module = _load(name)
    assert module.table(module.run(quick=True)).count("\n") >= 1

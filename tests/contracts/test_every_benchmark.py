"""Every benchmark still fits the code it measures: it loads, and its quick run prints a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nora.errors import UserError
from nora.verbs.machine import load_program

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
TESTED_ELSEWHERE = {"chaos", "cluster", "factorization", "generate", "init", "mirror", "preconditioner", "train"}
"""By tests of their own, beside those of what they measure: the quick run and what must hold of its result. Of chaos a
few trials (tests/runs/test_faults.py), of cluster each event by itself (tests/slurm)."""


@pytest.mark.parametrize("name", NAMES)
def test_it_loads(name: str) -> None:
    module = load_program(FOLDER / f"{name}.py")
    assert callable(module.run) and callable(module.table)


@pytest.mark.parametrize("name", ["init", "preconditioner", "evaluate", "dreambooth", "factorization"])
def test_the_table_of_the_committed_figures_says_what_was_aimed_at_and_reached(name: str) -> None:
    committed = json.loads((FOLDER.parent / "results" / "bench" / f"{name}.json").read_text())
    lines = load_program(FOLDER / f"{name}.py").table(committed["result"]).splitlines()
    verdicts = [line for line in lines if line.strip().startswith(("aim", "target"))]
    assert verdicts and all(": met, " in line or ": NOT met, " in line for line in verdicts)


def test_the_measurement_of_a_card_is_rehearsed_without_one() -> None:
    """Both ways of a search, and of a step, end with the same loss and gradient norm; answers in batches are those one
    by one; without a card nothing is measured in full."""
    module = load_program(FOLDER / "gpu.py")
    result = module.run(quick=True)
    for row in result["search"]:
        for key in ("loss", "grad_norm"):
            assert row["bank"][key] == pytest.approx(
                row["in turn"][key], rel=1e-3 if row["precision"] == "bf16" else 1e-4
            )
    ours, plain = result["train"]
    assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert ours["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-2), "bf16"
    assert result["generate"]["same"] == result["generate"]["compared"] > 0
    left = {"members": 1, "tokens": 8, "precision": "bf16", "not measured": "budget spent"}
    printed = module.table({**result, "search": [*result["search"], left], "train": [], "generate": None})
    assert printed.count("not measured: budget spent") == 3
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device is visible"):
            module.run(quick=False)


def test_a_packed_step_is_the_trainers_step_with_fewer_operations_on_padding() -> None:
    """Loss and gradient norm of both steps, all three ways; FLOP of the real tokens against those of a padded batch."""
    result = load_program(FOLDER / "train.py").run(quick=True)
    steps = result["steps"]
    assert [r["family"] for r in steps] == ["llama"] * 3 + ["gemma"] * 3
    for ours, text, plain in (steps[:3], steps[3:]):
        for other in (text, plain):
            assert other["loss"] == pytest.approx(ours["loss"], rel=1e-5)
            assert other["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
        assert ours["loss"][0] != ours["loss"][1]
        assert text["tflop"] == pytest.approx(ours["tflop"], rel=0.01) and text["operations"] > 2 * ours["operations"]
        assert plain["tflop"] > 1.5 * ours["tflop"] and plain["peak_mib"] > ours["peak_mib"]
    present, foreach, fused = result["adamw"]
    assert foreach["largest difference"] == 0 and fused["largest difference"] < 1e-15
    assert fused["operations"] < foreach["operations"] < present["operations"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in TESTED_ELSEWHERE])
def test_its_quick_run_prints_a_table(name: str) -> None:
    module = load_program(FOLDER / f"{name}.py")
    assert module.table(module.run(quick=True)).count("\n") >= 1

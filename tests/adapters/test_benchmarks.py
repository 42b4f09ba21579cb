"""The cost benchmarks run, count the paper's parameters, and measure methods that agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from nora import starts
from nora.verbs.machine import load_program


def test_the_shapes_are_the_papers(checkout: Path) -> None:
    shapes = load_program(checkout / "benchmarks" / "_shapes.py")
    counts = {name: shapes.trainable(*model) for name, model in shapes.MODELS.items()}
    assert counts == {"OPT-1.3B": 1_572_864, "LLaMA-7B": 56_098_816, "Gemma-7B": 100_007_936, "SD 1.4": 797_184}


@pytest.mark.slow
def test_the_preconditioners_agree(checkout: Path) -> None:
    benchmark = load_program(checkout / "benchmarks" / "preconditioner.py")
    result = benchmark.run(quick=True)
    assert all(m["error"] < 1e-5 for case in result["cases"] for m in case["methods"].values())
    assert "PEFT pinv loop" in benchmark.table(result)


@pytest.mark.slow
def test_the_init_measured_is_the_formula(checkout: Path) -> None:
    benchmark = load_program(checkout / "benchmarks" / "init.py")
    result = benchmark.run(quick=True)
    assert all(case["methods"]["nora"]["error"] < 1e-5 for case in result["cases"])
    assert "drawing" in benchmark.table(result)
    (measured,) = [case["methods"] for case in result["starts"] if case["device"] == "cpu"]
    assert set(measured) == {*starts.names("inits"), *starts.names("variants")} - {"loftq"}  # without its package

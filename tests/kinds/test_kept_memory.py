"""The bytes that a plan counts for a backward pass are those that are kept, on blocks of the bases' true width."""

from __future__ import annotations

from pathlib import Path

import pytest

from nora.verbs.machine import load_program

memory = load_program(Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py")


@pytest.mark.parametrize("precision", memory.PRECISIONS)
@pytest.mark.parametrize(
    "family", ["opt", pytest.param("llama", marks=pytest.mark.slow), pytest.param("gemma", marks=pytest.mark.slow)]
)
def test_the_bytes_that_a_plan_counts_are_those_that_are_kept(family: str, precision: str) -> None:
    row = memory.measure(family, precision)
    assert row["planned"] == pytest.approx(row["measured"], rel=memory.TOLERANCE)

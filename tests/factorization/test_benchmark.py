"""The benchmark runs, its rows are JSON, and it compares like with like."""

import json
from pathlib import Path

import pytest

from nora.verbs.machine import load_program

PATH = Path(__file__).parents[2] / "benchmarks" / "factorization.py"


@pytest.mark.slow
def test_quick_benchmark():
    bench = load_program(PATH)
    result = json.loads(json.dumps(bench.run(quick=True)))
    rows = [row for row in result["rows"] if row["device"] == "cpu"]
    assert {row["method"] for row in rows} == {"factorize", "svd", "svd_lowrank", "randomized_svd", "svds"}
    for row in rows:
        exact = {"fp64": 1e-13, "fp32": 1e-4}[row["precision"]]
        low, high = {"rank r": (0, exact), "1/i": (0.999, 1.02 if row["job"] == "sharp" else 2.0)}[row["spectrum"]]
        assert low <= row["error"] <= high, row
    text = bench.table(result)
    assert text.count("\n") == 1 + len(result["rows"]) + len(result["targets"])
    assert "svd_lowrank" in text and "target 10x against svd" in text

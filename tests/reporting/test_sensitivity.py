"""What a plan says its seeds can show: by the runs that are there, else by the test rows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from nora.cli import main
from nora.reporting.inference import seeds_needed, smallest_difference
from nora.reporting.reported import sensitivity_line
from nora.store.runs import Store
from nora.store.states import take_snapshot
from nora.tables.target import load_target


def test_the_spread_is_that_of_the_runs_that_are_there(checkout: Path) -> None:
    """Against the committed CSV of Table 2: each method's differences from LoRA, seed by seed."""
    with (checkout / "results/tables/table2.small.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["task"] == "sst2" and r["value"]]
    by = {m: np.array([float(r["value"]) for r in rows if r["method"] == m]) for m in {r["method"] for r in rows}}
    variances = [np.var(100 * (v - by["lora"]), ddof=1) for m, v in by.items() if m != "lora"]
    spread = float(np.sqrt(np.mean(variances)))
    target = load_target(checkout, "table2", ["scale=small", "task=sst2"])
    line = sensitivity_line(target, take_snapshot(Store(checkout / "results")))
    assert f"with 5 seeds: {smallest_difference(spread, 5):.1f} points" in line
    assert f"0.5 points would need {seeds_needed(0.5, spread)} seeds" in line


def test_without_runs_it_is_guessed_from_the_rows(checkout: Path) -> None:
    line = sensitivity_line(load_target(checkout, "table2", ["scale=paper"]), {})
    # about (1.96 + 0.84)² σ² / δ², σ² = 2 · 0.75 · 0.25 · (1 - 0.5) / 1000
    about = (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 * 2 * 0.75 * 0.25 * 0.5 / 1000 / 0.005**2
    assert "guessed from at most 1,000 test rows" in line
    assert int(line.split("would need ")[1].split(" ")[0]) == pytest.approx(about, abs=4)


def test_one_seed_shows_nothing_and_a_figure_has_no_line(checkout: Path) -> None:
    assert "a single seed shows no difference" in sensitivity_line(load_target(checkout, "table9"), {})
    assert sensitivity_line(load_target(checkout, "fig1"), {}) == ""
    few = sensitivity_line(load_target(checkout, "table2", ["scale=smoke"]), {})
    assert "  2 seeds show no difference" in few, "of eight test rows: more than a hundred points"


def test_plan_prints_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "table2", "scale=small", "task=sst2", f"exec.results={tmp_path}"]) == 0
    assert "points would need" in capsys.readouterr().out

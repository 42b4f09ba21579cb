"""Paired comparisons against independent references: libraries, printed tables, simulated sweeps in which nothing, or
two points, is there."""

from __future__ import annotations

import csv
import math
from math import fsum
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import friedmanchisquare, rankdata, ttest_rel

from nora.reporting.inference import (
    Ranking,
    compare,
    holm,
    mcnemar,
    power,
    rank_methods,
    seeds_needed,
    smallest_difference,
    within,
)


def test_without_items_it_is_the_paired_t_test() -> None:
    ours, theirs = [0.81, 0.84, 0.79, 0.86], [0.80, 0.85, 0.75, 0.81]
    found, reference = compare([a - b for a, b in zip(ours, theirs, strict=True)]), ttest_rel(ours, theirs)
    interval = reference.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, reference.pvalue))


def test_the_standard_error_is_that_of_drawing_seeds_and_then_items() -> None:
    draw = np.random.default_rng(0)
    items = [draw.choice([-1, 0, 1], size=60, p=[0.2, 0.5, 0.3]) + shift for shift in (0.1, -0.2, 0.3, 0.0)]
    resampled = []
    for _ in range(20000):
        seeds = draw.integers(0, 4, 4)
        resampled.append(np.mean([items[s][draw.integers(0, 60, 60)].mean() for s in seeds]))
    means = [own.mean() for own in items]
    between = np.var(means) / 4
    found = compare(means, [[own.tolist()] for own in items])
    naive = np.var(resampled) - between + between * 4 / 3  # the bootstrap's part between seeds, widened
    assert found.spread / 2 == pytest.approx(math.sqrt(naive), rel=0.02)


@pytest.mark.parametrize("shared_rows", [False, True])
@pytest.mark.parametrize(("seeds", "rows"), [(3, 64), (5, 200)])
def test_of_2000_sweeps_in_which_nothing_differs_at_most_6_percent_say_something(
    seeds: int, rows: int, shared_rows: bool
) -> None:
    """Two equal methods: seeds differ, items differ in difficulty, answers are drawn."""
    draw, called = np.random.default_rng(2), 0
    for _ in range(2000):
        luck = draw.normal(0, 0.02, (2, seeds, 1))
        hard = draw.normal(0.7, 0.2, (1, 1 if shared_rows else seeds, rows))
        right = draw.random((2, seeds, rows)) < np.clip(hard + luck, 0.02, 0.98)
        gap = right[0].astype(float) - right[1]
        found = compare(gap.mean(axis=1).tolist(), gap[:, None].tolist())
        called += found.low > 0 or found.high < 0
    assert called <= 0.06 * 2000, called


@pytest.mark.parametrize("seeds", [5, 10])
def test_a_planted_difference_of_two_points_is_found_at_the_stated_power(seeds: int) -> None:
    draw, spread = np.random.default_rng(3), 0.015
    found = sum(compare(draw.normal(0.02, spread, seeds).tolist()).low > 0 for _ in range(2000)) / 2000
    assert found == pytest.approx(power(0.02, spread, seeds), abs=0.03)


def test_a_difference_of_the_smallest_visible_size_is_found_four_times_in_five() -> None:
    draw, found = np.random.default_rng(4), 0
    for _ in range(2000):
        found += compare(draw.normal(smallest_difference(0.013, 5), 0.013, 5).tolist()).p <= 0.05
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("effect", "spread", "seeds"), [(0.5, 1.0, 5), (2.0, 1.3, 3), (0.1, 1.0, 40)])
def test_power_is_statsmodels(effect: float, spread: float, seeds: int) -> None:
    from statsmodels.stats.power import TTestPower

    reference = TTestPower()
    assert power(effect, spread, seeds) == pytest.approx(reference.power(effect / spread, seeds, 0.05), abs=1e-6)
    size = reference.solve_power(nobs=seeds, alpha=0.05, power=0.8)
    assert smallest_difference(spread, seeds) == pytest.approx(size * spread, rel=1e-4)


@pytest.mark.parametrize(("effect", "spread"), [(0.5, 1.3), (2.0, 1.0), (0.05, 1.0)])
def test_the_seeds_needed_are_the_fewest(effect: float, spread: float) -> None:
    n = seeds_needed(effect, spread)
    assert power(effect, spread, n) >= 0.8 and (n == 2 or power(effect, spread, n - 1) < 0.8)


def test_items_of_several_sets_count_by_the_sets_weight() -> None:
    """Two sets of 2 and 8 items: the mean over the sets has a quarter of each one's variance of a mean."""
    small, large = [0.0, 1.0], [0.0, 1.0] * 4
    assert within([[small, large]]) == pytest.approx((0.25 / 2 + 0.25 / 8) / 4)


def test_a_single_seed_shows_nothing_about_methods() -> None:
    found = compare([0.3], [[[1.0, 0.0, 0.0]]])
    assert (found.low, found.high, found.p, found.visible) == (-math.inf, math.inf, 1.0, math.inf)
    with pytest.raises(ValueError, match="required one or more finite"):
        compare([])


def test_mcnemar_counts_what_one_run_alone_answers() -> None:
    """8 against 1 of 100: twice the binomial tail (1 + 9) / 512."""
    ours = [True] * 50 + [True] * 8 + [False] * 1 + [False] * 41
    theirs = [True] * 50 + [False] * 8 + [True] * 1 + [False] * 41
    assert mcnemar(ours, theirs) == pytest.approx(2 * (1 + 9) / 512)
    assert mcnemar(ours, ours) == 1.0


def test_holm_adjusts_as_in_his_procedure() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({}) == {}


def test_ranks_and_critical_difference_are_demsars() -> None:
    """Demšar (2006), Table 6 and Section 3.2.2: four variants of C4.5 on 14 data sets."""
    columns = {
        "C4.5": [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.000, 0.940, 0.619, 0.972, 0.957],
        "C4.5+m": [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.000, 0.962, 0.666, 0.981, 0.978],
        "C4.5+cf": [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.000, 0.965, 0.614, 0.9751, 0.946],
        "C4.5+m+cf": [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.000, 0.962, 0.669, 0.975, 0.970],
    }
    found = rank_methods(columns)
    assert list(found.ranks.values()) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=1e-3)
    assert found.critical == pytest.approx(1.25, abs=0.01)  # 2.569 · sqrt(4 · 5 / (6 · 14))
    assert found.p < 0.05  # χ² = 9.28 with 3 degrees
    with pytest.raises(ValueError, match="three or more"):
        rank_methods({"a": [1.0], "b": [2.0]})


def test_bars_join_what_is_within_the_critical_difference() -> None:
    """Demšar (2006), Figure 1b's kind: his ranks of C4.5 at 5 % (1.25: all alike) and at 10 % (1.12: two bars)."""
    ranks = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert Ranking(ranks, 0.03, 1.25).alike() == [["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]]
    assert Ranking(ranks, 0.03, 1.12).alike() == [["C4.5+m+cf", "C4.5+m", "C4.5+cf"], ["C4.5+cf", "C4.5"]]
    assert Ranking(ranks, 0.03, 0.01).alike() == []


def test_the_ranks_figure_is_the_tables_numbers_ranked(checkout: Path) -> None:
    """The committed figure of the committed table: a rank per task by the mean over the seeds, tasks that are not whole
    left out; equal scores share their rank (a rounded mean would part them)."""
    rows = list(csv.DictReader((checkout / "results/tables/table2.small.csv").read_text().splitlines()))
    cells: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["state"] == "done":
            cells.setdefault(row["task"], {}).setdefault(row["method"], []).append(float(row["value"]))
    drawn = list(csv.DictReader((checkout / "results/figures/ranks.small.csv").read_text().splitlines()))
    methods = [row["method"] for row in drawn]
    whole = [by for by in cells.values() if all(len(by.get(m, [])) == 5 for m in methods)]
    assert len(methods) == 7 and {int(row["tasks"]) for row in drawn} == {len(whole)}
    by_task = [rankdata([-fsum(by[m]) / 5 for m in methods]) for by in whole]
    assert [float(row["mean_rank"]) for row in drawn] == pytest.approx(np.mean(by_task, axis=0))
    assert float(drawn[0]["friedman_p"]) == pytest.approx(
        friedmanchisquare(*([fsum(by[m]) / 5 for by in whole] for m in methods)).pvalue
    )

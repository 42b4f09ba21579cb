"""Which number of a column stands in bold, and which column says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from nora.reporting.statistics import above_chance, clear_best, student_quantile, summarize


@pytest.mark.parametrize(
    ("columns", "lowest", "best"),
    [
        (([0.50, 0.52, 0.51], [0.70, 0.72, 0.71], [0.60, 0.63, 0.60]), False, "b"),
        (([0.50, 0.52, 0.51], [0.70, 0.72, 0.71], [0.60, 0.63, 0.60]), True, "a"),
        (([0.50, 0.50, 0.50], [0.53, 0.45, 0.56], [0.49, 0.50, 0.50]), False, ""),  # best by 1.3 points, spread of 5
        (([0.10, 0.50, 0.90], [0.13, 0.52, 0.93], [0.02, 0.41, 0.83]), False, "b"),  # seeds differ, pairs do not
        (([0.5], [0.9], [0.6]), False, ""),  # one seed shows nothing
        (([0.5, 0.5, 0.5], None, [0.9, 0.9, 0.9]), False, ""),  # the best of what is there may not be the best
        (([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]), False, ""),
    ],
)
def test_bold_is_what_beats_every_other_by_more_than_noise(
    columns: tuple[list[float] | None, ...], lowest: bool, best: str
) -> None:
    found = {n: None if v is None else summarize(v) for n, v in zip("abc", columns, strict=True)}
    assert clear_best(found, lowest=lowest) == set(best)


@pytest.mark.parametrize(("methods", "seeds"), [(2, 3), (6, 3), (7, 5)])
def test_among_equal_methods_fewer_than_one_column_in_twenty_has_a_best(methods: int, seeds: int) -> None:
    """2,000 tables in which nothing differs, each seed harder or easier for all: at most 6 % have something bold."""
    draw = np.random.default_rng(0)
    called = 0
    for _ in range(2000):
        shared = draw.normal(0, 3, seeds)
        called += bool(
            clear_best({str(m): summarize((shared + draw.normal(0, 1, seeds)).tolist()) for m in range(methods)})
        )
    assert called <= 0.06 * 2000, called


def test_a_method_that_is_better_by_four_spreads_is_found() -> None:
    draw = np.random.default_rng(1)
    found = 0
    for _ in range(500):
        values = {str(m): summarize(draw.normal(4.0 if m == 0 else 0.0, 1, 5).tolist()) for m in range(4)}
        found += clear_best(values) == {"0"}
    assert found > 0.8 * 500, found


@pytest.mark.parametrize(
    ("mean", "references", "rows", "above"),
    [
        (0.53, [0.50, 0.49], 256, False),
        (0.57, [0.50, 0.49], 256, True),
        (0.71, [0.47], 56, True),
        (0.02, [0.0], 64, False),
    ],
)
def test_chance_is_what_no_training_reaches_and_two_standard_errors(
    mean: float, references: list[float], rows: int, above: bool
) -> None:
    assert above_chance(mean, references, rows) is above


@pytest.mark.parametrize("freedom", [1, 2, 9, 100])
def test_an_interval_is_as_wide_as_students_t_says(freedom: int) -> None:
    assert student_quantile(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=1e-14)

"""Which number of a column stands in bold."""

from __future__ import annotations

import pytest
from scipy.stats import t as student

from nora.reporting.statistics import Summary, best_of, student_quantile


def _column(*means: float | None) -> dict[str, Summary | None]:
    return {name: None if mean is None else Summary(mean, None, 1) for name, mean in zip("abc", means, strict=True)}


@pytest.mark.parametrize(
    ("means", "lowest", "best"),
    [
        ((0.5, 0.7, 0.6), False, "b"),
        ((0.5, 0.7, 0.6), True, "a"),
        ((0.7001, 0.7004, 0.6), False, "ab"),  # both print as 70.0
        ((0.7004, 0.7006, 0.6), False, "b"),  # 70.0 and 70.1
        ((0.5, 0.5, 0.50004), False, ""),  # all print as 50.0
        ((0.5, None, 0.6), False, ""),  # the best of what is there may not be the best
    ],
)
def test_the_best_is_what_prints_as_the_best(means: tuple[float | None, ...], lowest: bool, best: str) -> None:
    assert best_of(_column(*means), digits=1, scale=100, lowest=lowest) == set(best)


@pytest.mark.parametrize("freedom", [1, 2, 9, 100])
def test_an_interval_is_as_wide_as_students_t_says(freedom: int) -> None:
    assert student_quantile(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=1e-14)

"""Means over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of n values; ``std`` is None for n < 2."""

    mean: float
    std: float | None
    n: int


def summarize(values: Sequence[float]) -> Summary:
    """Mean ± std; ValueError for no values or a value that is not finite."""
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"given {list(values)}, required one or more finite values")
    n = len(values)
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    return Summary(mean, std, n)


def best_of(
    summaries: Mapping[str, Summary | None], *, digits: int, scale: float = 1.0, lowest: bool = False
) -> set[str]:
    """The names whose mean is the best as it is printed (times ``scale``, to ``digits``); none where one is missing or
    all print alike."""
    printed = {name: round(scale * s.mean, digits) for name, s in summaries.items() if s is not None}
    if len(printed) < len(summaries) or len(set(printed.values())) < 2:
        return set()
    top = min(printed.values()) if lowest else max(printed.values())
    return {name for name, value in printed.items() if value == top}


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided 95 % t interval (infinite for a single value)."""

    mean: float
    low: float
    high: float


def student_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t: half the width of a 95 % interval, in standard errors."""
    from scipy.special import stdtrit  # scipy.stats says the same and takes half a second more to import

    return float(stdtrit(freedom, 0.975))


def paired_interval(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Of the differences values - others, pair by pair; ValueError where they are not as many."""
    summary = summarize([a - b for a, b in zip(values, others, strict=True)])
    if summary.std is None:
        return Interval(summary.mean, -math.inf, math.inf)
    half = student_quantile(summary.n - 1) * summary.std / math.sqrt(summary.n)
    return Interval(summary.mean, summary.mean - half, summary.mean + half)

"""Means over seeds, intervals, and slopes of iteration counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of n values; ``std`` is None for n < 2."""

    mean: float
    std: float | None
    n: int
    values: tuple[float, ...] = field(default=(), compare=False)
    """In the order of the seeds, so that two summaries can be compared pair by pair."""


def summarize(values: Sequence[float]) -> Summary:
    """Mean ± std; ValueError for no values or a value that is not finite."""
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"given {list(values)}, required one or more finite values")
    n = len(values)
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    return Summary(mean, std, n, tuple(values))


def clear_best(summaries: Mapping[str, Summary | None], *, lowest: bool = False) -> set[str]:
    """The name whose mean is better than every other's by more than noise: the 95 % interval of its paired difference
    from each over the seeds has no 0 in it. None where one is missing, for one seed, or within noise: of all methods
    equal, one is called best in fewer than one table column in twenty."""
    present = {name: s for name, s in summaries.items() if s is not None}
    if len(present) < len(summaries) or len(present) < 2:
        return set()
    sign = -1 if lowest else 1
    top = max(present, key=lambda name: sign * present[name].mean)
    others = [s for name, s in present.items() if name != top]
    gaps = [paired_interval(*([sign * v for v in s.values] for s in (present[top], other))) for other in others]
    return {top} if all(gap.low > 0 for gap in gaps) else set()


def above_chance(mean: float, references: Iterable[float], rows: int) -> bool:
    """Whether a share of right answers of ``rows`` questions is above what no training reaches (the most frequent
    class, the untrained base) by two binomial standard errors or more."""
    floor = max(references, default=0.0)
    return mean - floor >= 2 * math.sqrt(max(floor * (1 - floor), 1 / rows) / rows)


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


@dataclass(frozen=True)
class Count:
    """Iterations of one seed until the metric is at most ``epsilon``; None where the budget ended first."""

    kappa: float
    epsilon: float
    seed: int
    iterations: int | None


@dataclass(frozen=True)
class Slope:
    """A least-squares slope with its 95 % interval and R²; ``censored`` counts were over the budget."""

    value: float
    low: float
    high: float
    r2: float
    points: int
    censored: int

    @property
    def determined(self) -> bool:
        return math.isfinite(self.value)


def slope_in_kappa(counts: Sequence[Count]) -> Slope:
    """a in iterations ~ κ^a, at the smallest ε."""
    finest = min(c.epsilon for c in counts)
    rows = [c for c in counts if c.epsilon == finest]
    # A count of 0 (the start is within ε) has no logarithm; it is counted as one iteration here.
    return _fit(rows, lambda c: math.log10(c.kappa), lambda k: math.log10(max(k, 1)))


def slope_in_digits(counts: Sequence[Count]) -> Slope:
    """Iterations per factor of ten in ε: constant for a linear rate."""
    return _fit(counts, lambda c: -math.log10(c.epsilon), float)


def slope_in_doublings(counts: Sequence[Count]) -> Slope:
    """Iterations per doubling of the digits of ε: about 1 for a quadratic rate, 0 for one step."""
    return _fit(counts, lambda c: math.log2(-math.log10(c.epsilon)), float)


def _fit(rows: Sequence[Count], x_of: Callable[[Count], float], y_of: Callable[[int], float]) -> Slope:
    """Least squares with one intercept per seed (starts differ in luck, not in rate), Student's t interval."""
    reached = [(c, c.iterations) for c in rows if c.iterations is not None]
    seeds = np.array([c.seed for c, _ in reached])
    x = _centred(np.array([x_of(c) for c, _ in reached]), seeds)
    y = _centred(np.array([y_of(k) for _, k in reached]), seeds)
    freedom = len(x) - len(set(seeds.tolist())) - 1
    censored = len(rows) - len(x)
    if freedom < 1 or not float(x @ x) > 0:
        return Slope(math.nan, math.nan, math.nan, math.nan, len(x), censored)
    value = float(x @ y / (x @ x))
    rest = float(((y - value * x) ** 2).sum())
    half = student_quantile(freedom) * math.sqrt(rest / freedom / float(x @ x))
    r2 = 1 - rest / float(y @ y) if float(y @ y) > 0 else math.nan
    return Slope(value, value - half, value + half, r2, len(x), censored)


def _centred(values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Each value less its seed's mean."""
    means = {seed: values[seeds == seed].mean() for seed in set(seeds.tolist())}
    centred: np.ndarray = values - np.array([means[seed] for seed in seeds.tolist()])
    return centred

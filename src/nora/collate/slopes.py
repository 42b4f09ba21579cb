"""Slopes of iteration counts with intervals: against log κ, log(1/ε) and log log(1/ε)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nora.collate.statistics import student_quantile


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

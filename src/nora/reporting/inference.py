"""Paired comparisons: intervals over seeds and items, their power, single runs, families of claims, several tasks.

The libraries' routines where there is one; statsmodels loads pandas and is imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.05
POWER = 0.8
_MOST = 1_000_000


@dataclass(frozen=True)
class Comparison:
    """A mean paired difference with its two-sided 95 % interval, in the units of the differences."""

    effect: float
    low: float
    high: float
    p: float
    seeds: int
    items: int
    """Answers compared, over all seeds; 0 where only the seeds' means are there."""
    spread: float
    """Standard deviation of one seed's difference, items included: the standard error times √seeds."""
    visible: float
    """The smallest true difference that this many seeds find with 80 % power; inf for a single one."""


def compare(means: Sequence[float], items: Sequence[Sequence[Sequence[float]]] = ()) -> Comparison:
    """Of differences paired within seed and item: ``means`` one per seed; ``items`` per seed and set (of equal weight)
    those of the items.

    The standard error is that of the hierarchical bootstrap (seeds drawn with replacement, then items within each),
    in closed form: no random numbers, the same bytes each time. Its part between seeds is widened by n/(n-1), as the
    bootstrap's variance of n values is too small by that much, and the quantile is Student's with n - 1 degrees: for
    items that do not vary this is the paired t interval. Where each seed has rows of its own the items' noise is
    counted twice, which is on the safe side. A single seed has an infinite interval: ``mcnemar`` compares two runs.
    """
    n = len(means)
    if not n or not all(map(math.isfinite, means)):
        raise ValueError(f"given {list(means)}, required one or more finite differences")
    effect, count = math.fsum(means) / n, sum(len(own) for sets in items for own in sets)
    if n == 1:
        return Comparison(effect, -math.inf, math.inf, 1.0, 1, count, math.nan, math.inf)
    from scipy.special import stdtr, stdtrit

    error = math.sqrt((float(np.var(means, ddof=1)) + within(items)) / n)
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * error
    if error:
        p = float(2 * stdtr(n - 1, -abs(effect) / error))
    else:
        p = 1.0 if effect == 0 else 0.0
    spread = error * math.sqrt(n)
    return Comparison(effect, effect - half, effect + half, p, n, count, spread, smallest_difference(spread, n))


def within(items: Sequence[Sequence[Sequence[float]]]) -> float:
    """The variance of one seed's mean difference when its items are drawn anew: the mean over the seeds; 0 for none."""
    own = [math.fsum(float(np.var(one)) / len(one) for one in sets) / len(sets) ** 2 for sets in items]
    return math.fsum(own) / len(own) if own else 0.0


def power(effect: float, spread: float, seeds: int) -> float:
    """Of the two-sided paired t test at 5 % with ``seeds`` differences of standard deviation ``spread``."""
    from scipy.special import ncfdtr, stdtrit

    if seeds < 2 or not spread:
        return 0.0 if seeds < 2 else float(effect != 0)
    # t² is F with one degree; its non-central function holds where that of t is not a number
    quantile = float(stdtrit(seeds - 1, 1 - LEVEL / 2))
    return 1 - float(ncfdtr(1, seeds - 1, seeds * (effect / spread) ** 2, quantile**2))


def smallest_difference(spread: float, seeds: int) -> float:
    """The true difference that is found with 80 % power; inf for a single seed."""
    return spread * _smallest(seeds) if seeds > 1 else math.inf


@cache
def _smallest(seeds: int) -> float:
    """In standard deviations."""
    from scipy.optimize import brentq

    top = 1.0
    while power(top, 1.0, seeds) < POWER:
        top *= 2
    return float(brentq(lambda d: power(d, 1.0, seeds) - POWER, 0, top))


def seeds_needed(effect: float, spread: float) -> int:
    """The fewest seeds with which a difference of ``effect`` is found with 80 % power (at least 2)."""
    if not effect:
        raise ValueError("given an effect of 0, required another: no number of seeds finds it")
    low, high = 1, 2
    while power(effect, spread, high) < POWER and high < _MOST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(effect, spread, middle) < POWER else (low, middle)
    return high


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """The exact p-value that two runs answer the same items equally well, from those that one alone answers."""
    from statsmodels.stats.contingency_tables import mcnemar as exact

    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    return float(exact([[0, won], [lost, 0]], exact=True).pvalue) if won + lost else 1.0


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values of a family: those up to 0.05 reject with a false
    rejection in at most one family of twenty."""
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests(list(values.values()), alpha=LEVEL, method="holm")[1] if values else []
    return {name: float(p) for name, p in zip(values, adjusted, strict=True)}


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over tasks (1 is best), Friedman's p, and Nemenyi's critical difference of two mean ranks."""

    ranks: dict[str, float]
    p: float
    critical: float

    def alike(self) -> list[list[str]]:
        """The largest groups whose ranks lie within the critical difference of each other, best rank first."""
        ordered = sorted(self.ranks, key=lambda name: self.ranks[name])
        groups: list[list[str]] = []
        for i, first in enumerate(ordered):
            group = [name for name in ordered[i:] if self.ranks[name] - self.ranks[first] <= self.critical]
            if len(group) > 1 and (not groups or group[-1] != groups[-1][-1]):
                groups.append(group)
        return groups


def rank_methods(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """Method → one score per task, larger is better; ValueError for fewer than three methods or two tasks. The critical
    difference is Nemenyi's at 5 % (Demšar 2006, Section 3.2.2)."""
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    table = np.array(list(scores.values()), dtype=float)
    k, n = table.shape
    if k < 3 or n < 2:
        raise ValueError(f"given {k} methods on {n} tasks, required three or more on two or more")
    ranks = rankdata(-table, axis=0).mean(axis=1)
    p = 1.0 if np.ptp(table, axis=0).max() == 0 else float(friedmanchisquare(*table).pvalue)
    quantile = float(studentized_range.ppf(1 - LEVEL, k, np.inf)) / math.sqrt(2)
    return Ranking(dict(zip(scores, map(float, ranks), strict=True)), p, quantile * math.sqrt(k * (k + 1) / (6 * n)))

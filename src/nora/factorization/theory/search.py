"""Random draws, then an adversarial search: keep the worst instances and perturb them at every scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

Ratio = Callable[[Tensor], Tensor]

RANDOM, POPULATION, ELITES, ROUNDS = 1000, 192, 16, 36
SCALES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


class Worst(NamedTuple):
    """Instances tried at random, instances tried by the search, and the largest value seen."""

    random: int
    searched: int
    value: float


def worst_case(
    ratio: Ratio, dim: int, *, generator: torch.Generator, random: int = RANDOM, rounds: int = ROUNDS
) -> Worst:
    """Maximise ``ratio`` ([N, dim] -> [N]; NaN: not an instance of the claim) over ``random`` draws and a search."""
    points = torch.empty(0, dim, dtype=torch.float64)
    values = torch.empty(0, dtype=torch.float64)
    while len(values) < random:
        draw = 1.5 * torch.randn(random, dim, generator=generator, dtype=torch.float64)
        found = ratio(draw)
        inside = ~found.isnan()
        points, values = torch.cat([points, draw[inside]]), torch.cat([values, found[inside]])
    tried, searched = len(values), 0
    for i in range(rounds):
        order = values.argsort(descending=True, stable=True)[:ELITES]
        points, values = points[order], values[order]
        parents = points.repeat(POPULATION // ELITES, 1)
        noise = torch.randn(parents.shape, generator=generator, dtype=torch.float64)
        draw = parents + SCALES[i % len(SCALES)] * noise
        found = ratio(draw)
        inside = ~found.isnan()
        searched += int(inside.sum())
        points, values = torch.cat([points, draw[inside]]), torch.cat([values, found[inside]])
    return Worst(tried, searched, float(values.max()))


def combine(results: Iterable[Worst]) -> Worst:
    """The sum of the trials and the worst of the values."""
    listed = list(results)
    return Worst(sum(w.random for w in listed), sum(w.searched for w in listed), max(w.value for w in listed))


def within(valid: Tensor, values: Tensor) -> Tensor:
    """``values`` of the valid instances in their places, NaN elsewhere."""
    full = torch.full(valid.shape, torch.nan, dtype=torch.float64)
    full[valid] = values
    return full


def over(cases: Iterable[tuple[Ratio, int]], *, generator: torch.Generator, rounds: int = ROUNDS) -> Worst:
    """``worst_case`` over several shapes and settings: each case is (ratio, how many numbers it reads)."""
    return combine(worst_case(ratio, dim, generator=generator, rounds=rounds) for ratio, dim in cases)

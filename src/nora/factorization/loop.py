"""The one loop: a solver's steps until a tolerance, a budget, or a divergence, over a batch of seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from nora.factorization.linalg import State
from nora.factorization.problems import Problem
from nora.factorization.solvers import Solver

# Relative to ||A||_F. A Nystrom start's first step may overshoot by (kappa / xi)^2, 1e17 at kappa = 1e4, and come
# back; nothing comes back from 1e30, and squares of it still fit into a float64.
DIVERGENCE = 1e30


class StopReason(Enum):
    """Why a run ended."""

    CONVERGED = "converged"
    BUDGET = "budget"
    DIVERGED = "diverged"
    NON_FINITE = "non_finite"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one call of ``iterate`` measured.

    steps: the iterations at which metrics were taken. metrics[name] is [len(steps), seeds]; a seed that stopped has
    NaN (not measured) from then on. iterations and reasons: one per seed. seconds: spent in steps only.
    """

    steps: tuple[int, ...]
    metrics: dict[str, Tensor]
    iterations: tuple[int, ...]
    reasons: tuple[StopReason, ...]
    state: State
    seconds: float

    def curve(self, metric: str, seed: int = 0) -> list[tuple[int, float]]:
        """(iteration, value) of one seed, up to where it stopped."""
        column = self.metrics[metric][:, seed].tolist()
        last = self.iterations[seed]
        return [(t, value) for t, value in zip(self.steps, column, strict=True) if t <= last]

    def first_below(self, metric: str, tolerance: float, seed: int = 0) -> int | None:
        """The first recorded iteration whose metric is at most ``tolerance``; None where there is none."""
        return next((t for t, value in self.curve(metric, seed) if value <= tolerance), None)


def iterate(
    problem: Problem,
    solver: Solver,
    start: State,
    *,
    budget: int,
    tolerance: float | None = None,
    on: str = "error",
    divergence: float = DIVERGENCE,
    every: int = 1,
    before_step: Callable[[int], None] = lambda t: None,
) -> Trace:
    """Run ``solver`` from ``start`` ([m, r], or [S, m, r] for S seeds at once).

    A seed stops when ``on`` (error, relative, loss, weak) is at most ``tolerance``, when its relative error passes
    ``divergence``, when an entry is not finite, or after ``budget`` steps. Metrics are taken every ``every`` steps
    and at the end, outside the timed part. ``before_step(t)`` may raise to end the run.
    """
    _check(problem, start, budget, tolerance, every)
    batched = start.X.dim() == 3
    # Column-major: the thin products and QR read columns, and a batch folds into one product with A's factors.
    state = _columns(start if batched else _unsqueeze(start))
    seeds = state.X.shape[0]
    final, running = state, torch.arange(seeds, device=state.X.device)
    reasons, iterations = [StopReason.BUDGET] * seeds, [budget] * seeds
    steps: list[int] = []
    rows: list[dict[str, Tensor]] = []
    seconds = 0.0
    for t in range(budget + 1):
        finite = _finite(state)
        if t % every == 0 or t == budget or not bool(finite.all()):
            measured = problem.metrics(state)
            if on not in measured:
                raise ValueError(f"on: given {on!r}, required one of {', '.join(measured)} for this problem")
            steps.append(t)
            rows.append({name: _spread(value, running, seeds) for name, value in measured.items()})
            reached = measured[on] <= (-math.inf if tolerance is None else tolerance)
            far = ~(measured["relative"] <= divergence)
            stop = reached | far | ~finite
            for i in stop.nonzero().flatten().tolist():
                seed = int(running[i])
                iterations[seed] = t
                reasons[seed] = _reason(bool(finite[i]), bool(reached[i]))
            if bool(stop.any()) or t == budget:
                final = _put(final, state, running)
                state, running = _take(state, ~stop), running[~stop]
        if t == budget or len(running) == 0:
            break
        before_step(t)
        began = time.perf_counter()
        state = solver.step(problem, state, t)
        if state.X.is_cuda:
            torch.cuda.synchronize(state.X.device)
        seconds += time.perf_counter() - began
    return Trace(
        steps=tuple(steps),
        metrics={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
        iterations=tuple(iterations),
        reasons=tuple(reasons),
        state=final if batched else State(final.X[0], None if final.Y is None else final.Y[0]),
        seconds=seconds,
    )


def _check(problem: Problem, start: State, budget: int, tolerance: float | None, every: int) -> None:
    """Shapes and settings a caller can get wrong."""
    m, n = problem.shape
    given = [tuple(M.shape[-2:]) for M in start if M is not None]
    required = [(m, problem.rank)] if problem.symmetric else [(m, problem.rank), (n, problem.rank)]
    if given != required or start.X.dim() not in (2, 3) or problem.like.dim() != 2:
        raise ValueError(
            f"start: given factors {given} with {start.X.dim()} dimensions, required {required} as [m, r] or "
            "[seeds, m, r] on one (unbatched) problem; build it with a start from nora.factorization.starts"
        )
    if budget < 0 or every < 1 or (tolerance is not None and not tolerance > 0):
        raise ValueError(
            f"budget, every, tolerance: given {budget}, {every}, {tolerance}, required budget >= 0, every >= 1 and "
            "tolerance > 0 (or None to run the whole budget)"
        )
    if not bool(_finite(_unsqueeze(start) if start.X.dim() == 2 else start).all()):
        raise ValueError("start: given non-finite entries, required finite ones; lower the start's scale")


def _unsqueeze(state: State) -> State:
    return State(state.X[None], None if state.Y is None else state.Y[None])


def _columns(state: State) -> State:
    return State(state.X.mT.contiguous().mT, None if state.Y is None else state.Y.mT.contiguous().mT)


def _take(state: State, keep: Tensor) -> State:
    return State(state.X[keep], None if state.Y is None else state.Y[keep])


def _put(whole: State, part: State, where: Tensor) -> State:
    """``whole`` with the rows ``where`` replaced by ``part``."""
    X = whole.X.index_copy(0, where, part.X)
    return State(X, None if whole.Y is None or part.Y is None else whole.Y.index_copy(0, where, part.Y))


def _finite(state: State) -> Tensor:
    finite = torch.isfinite(state.X).all(-1).all(-1)
    return finite if state.Y is None else finite & torch.isfinite(state.Y).all(-1).all(-1)


def _spread(value: Tensor, running: Tensor, seeds: int) -> Tensor:
    """One number per seed, NaN (not measured) for the seeds that stopped."""
    full = torch.full((seeds,), torch.nan, dtype=value.dtype, device=value.device)
    return full.index_copy(0, running, value).cpu()


def _reason(finite: bool, reached: bool) -> StopReason:
    if not finite:
        return StopReason.NON_FINITE
    return StopReason.CONVERGED if reached else StopReason.DIVERGED

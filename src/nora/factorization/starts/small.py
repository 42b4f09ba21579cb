"""X_0 (and Y_0) with entries N(0, zeta^2), zeta small: the usual start of the literature."""

from __future__ import annotations

import torch

from nora.factorization.linalg import State, gaussian, require_positive
from nora.factorization.problems.base import Problem


def start(problem: Problem, *, generator: torch.Generator, zeta: float = 1e-3) -> State:
    """[X_0]_ij, [Y_0]_ij ~ N(0, zeta^2) (Section 2.1)."""
    require_positive(zeta, "zeta")
    m, n = problem.shape
    X = gaussian(m, problem.rank, generator=generator, std=zeta, like=problem.like, name="the small start")
    if problem.symmetric:
        return State(X)
    return State(X, gaussian(n, problem.rank, generator=generator, std=zeta, like=problem.like, name="the small start"))

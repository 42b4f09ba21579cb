"""X_0 = A Omega with [Omega]_ij ~ N(0, xi^2) (3); for the asymmetric problem Y_0 = 0 (5)."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.factorization.linalg import State, gaussian, require_positive
from nora.factorization.problems.base import Problem


def start(problem: Problem, *, generator: torch.Generator, xi: float = 0.1) -> State:
    """The Nystrom sketch of A; with one generator state, Omega's direction does not depend on xi."""
    require_positive(xi, "xi")
    Omega = gaussian(
        problem.shape[1], problem.rank, generator=generator, std=xi, like=problem.like, name="the Nystrom start"
    )
    return from_sketch(problem, Omega)


def from_sketch(problem: Problem, Omega: Tensor) -> State:
    """(3) or (5) for a given Omega [n, r]."""
    X = problem.apply(Omega)
    if problem.symmetric:
        return State(X)
    return State(X, X.new_zeros(problem.shape[1], problem.rank))

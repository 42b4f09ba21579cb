"""X_0 = A Omega with Omega from the Stiefel manifold, which Section 2.2 names as a valid choice too."""

from __future__ import annotations

import torch

from nora.factorization.linalg import State, require_positive, stiefel
from nora.factorization.problems.base import Problem
from nora.factorization.starts.nystrom import from_sketch


def start(problem: Problem, *, generator: torch.Generator, xi: float = 0.1) -> State:
    """Omega = xi sqrt(n) U, U uniform on St(n, r): the entries' variance is xi^2, as for the Gaussian sketch."""
    require_positive(xi, "xi")
    name = "the Stiefel start"
    Omega = stiefel(problem.shape[1], problem.rank, generator=generator, std=xi, like=problem.like, name=name)
    return from_sketch(problem, Omega)

"""Ward and Kolda's start for AltGD (asymmetric only): a sketch of A for X_0 and a small Gaussian for Y_0."""

from __future__ import annotations

import torch

from nora.factorization.linalg import State, gaussian, require_positive
from nora.factorization.problems.base import Problem


def start(problem: Problem, *, generator: torch.Generator, sigma_1: float = 1.0, zeta: float = 1e-2) -> State:
    """X_0 = A Omega_1 / sigma_1(A), Y_0 = sigma_1(A) Omega_2, entries of both Omegas N(0, zeta^2) (Section 3.1).

    Unlike (5) it needs sigma_1(A) and a small zeta, and Y_0 has a part outside A's row space.
    """
    if problem.symmetric:
        raise ValueError(
            "start: given altgd with the symmetric problem, required the asymmetric one; use nystrom or small"
        )
    require_positive(zeta, "zeta")
    require_positive(sigma_1, "sigma_1")
    n, name = problem.shape[1], "the AltGD start"
    Omega_1 = gaussian(n, problem.rank, generator=generator, std=zeta, like=problem.like, name=name)
    Omega_2 = gaussian(n, problem.rank, generator=generator, std=zeta, like=problem.like, name=name)
    return State(problem.apply(Omega_1) / sigma_1, sigma_1 * Omega_2)

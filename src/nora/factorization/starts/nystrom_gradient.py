"""The Nystrom start without access to A: from one gradient (Appendix A.4)."""

from __future__ import annotations

import torch

from nora.factorization.linalg import State, gaussian, require_positive
from nora.factorization.problems.base import Problem, gradient


def start(problem: Problem, *, generator: torch.Generator, xi: float = 0.1) -> State:
    """Symmetric: X_0 = -G(Omega) + Omega Omega^T Omega. Asymmetric: X_0 = -G_X(0, Omega), Y_0 = 0. Both are A Omega."""
    require_positive(xi, "xi")
    m, n = problem.shape
    name = "the gradient start"
    Omega = gaussian(n, problem.rank, generator=generator, std=xi, like=problem.like, name=name)
    if problem.symmetric:
        return State(Omega @ (Omega.mT @ Omega) - gradient(problem, State(Omega)).X)
    zero = State(Omega.new_zeros(m, problem.rank), Omega)
    return State(-gradient(problem, zero).X, torch.zeros_like(Omega))

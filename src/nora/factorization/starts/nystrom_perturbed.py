"""X_0 = A Omega + N with [N]_ij ~ N(0, xi_n^2): the dotted curves of Figures 1(b) and 4(b)."""

from __future__ import annotations

import torch

from nora.factorization.linalg import State, gaussian, require_positive
from nora.factorization.problems.base import Problem
from nora.factorization.starts import nystrom


def start(problem: Problem, *, generator: torch.Generator, xi: float = 0.1, xi_n: float = 1e-6) -> State:
    """The noise puts a little of X_0 outside the column space of A, where it decays by 1 - eta a step only."""
    require_positive(xi_n, "xi_n")
    clean = nystrom.start(problem, generator=generator, xi=xi)
    noise = gaussian(*clean.X.shape, generator=generator, std=xi_n, like=problem.like, name="the perturbed start")
    return State(clean.X + noise, clean.Y)

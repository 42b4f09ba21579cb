"""ScaledGD(lambda): ScaledGD with a damped preconditioner (Xu et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nora.factorization.linalg import State, require_positive
from nora.factorization.problems.base import Problem, gradient
from nora.factorization.schedules import Step, require_step, step_at


@dataclass(frozen=True, kw_only=True)
class Solver:
    """X+ = X - eta (X X^T - A) X (X^T X + lambda I)^{-1}; ``damping`` is lambda, added to the Gram matrix.

    Asymmetric: both updates read (X_t, Y_t); Y_0 = 0 needs no modified first step, since its gradient in X is zero.
    Xu et al. recommend lambda of the order of the smallest non-zero value of A.
    """

    eta: Step
    damping: float = 0.01

    def __post_init__(self) -> None:
        require_step(self.eta)
        require_positive(self.damping, "damping")

    def step(self, problem: Problem, state: State, t: int) -> State:
        eta = step_at(self.eta, t)
        G = gradient(problem, state)
        X, Y = state
        if Y is None or G.Y is None:
            return State(X - eta * self._precondition(G.X, X))
        return State(X - eta * self._precondition(G.X, Y), Y - eta * self._precondition(G.Y, X))

    def _precondition(self, G: Tensor, partner: Tensor) -> Tensor:
        """G (M^T M + lambda I)^{-1} with M the other factor."""
        gram = partner.mT @ partner + self.damping * torch.eye(partner.shape[-1]).to(partner)
        return torch.cholesky_solve(G.mT, torch.linalg.cholesky(gram)).mT

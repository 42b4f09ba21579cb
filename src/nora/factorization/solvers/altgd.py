"""Alternating gradient descent (Ward and Kolda, 2023), asymmetric only."""

from __future__ import annotations

from dataclasses import dataclass

from nora.factorization.linalg import State
from nora.factorization.problems.base import Problem
from nora.factorization.schedules import Step, require_step, step_at


@dataclass(frozen=True, kw_only=True)
class Solver:
    """X+ = X - eta (X Y^T - A) Y, then Y+ = Y - eta (X+ Y^T - A)^T X+ with the new X (Gauss-Seidel order)."""

    eta: Step

    def __post_init__(self) -> None:
        require_step(self.eta)

    def step(self, problem: Problem, state: State, t: int) -> State:
        X, Y = state
        if Y is None:
            raise ValueError("solver: given altgd with the symmetric problem, required the asymmetric one; use gd")
        eta = step_at(self.eta, t)
        X = X - eta * (X @ (Y.mT @ Y) - problem.apply(Y))
        return State(X, Y - eta * (Y @ (X.mT @ X) - problem.apply_transposed(X)))

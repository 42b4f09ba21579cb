"""Gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

from nora.factorization.linalg import State
from nora.factorization.problems.base import Problem, gradient
from nora.factorization.schedules import Step, require_step, step_at


@dataclass(frozen=True, kw_only=True)
class Solver:
    """X+ = X - eta (X X^T - A) X; for (4) both gradients are taken at (X, Y)."""

    eta: Step

    def __post_init__(self) -> None:
        require_step(self.eta)

    def step(self, problem: Problem, state: State, t: int) -> State:
        eta = step_at(self.eta, t)
        G = gradient(problem, state)
        if state.Y is None or G.Y is None:
            return State(state.X - eta * G.X)
        return State(state.X - eta * G.X, state.Y - eta * G.Y)

"""ScaledGD (Tong et al., 2021), and for (4) the paper's version with a modified first step."""

from __future__ import annotations

from dataclasses import dataclass

from nora.factorization.linalg import State, right_inverse_transposed
from nora.factorization.problems.base import Problem
from nora.factorization.schedules import Step, require_step, step_at


@dataclass(frozen=True, kw_only=True)
class Solver:
    """X+ = X - eta (X X^T - A) X (X^T X)^{-1} = (1 - eta) X + eta A X (X^T X)^{-1}   (2).

    Asymmetric (6): X_1 = X_0, and both updates read (X_t, Y_t) (Jacobi order). The second form costs one product
    with A, and a part of X outside A's column space shrinks by exactly 1 - eta instead of being recomputed.
    """

    eta: Step

    def __post_init__(self) -> None:
        require_step(self.eta)

    def step(self, problem: Problem, state: State, t: int) -> State:
        eta = step_at(self.eta, t)
        X, Y = state
        if Y is None:
            return State((1 - eta) * X + eta * problem.apply(right_inverse_transposed(X)))
        Y_next = (1 - eta) * Y + eta * problem.apply_transposed(right_inverse_transposed(X))
        if t == 0:
            return State(X, Y_next)
        return State((1 - eta) * X + eta * problem.apply(right_inverse_transposed(Y)), Y_next)

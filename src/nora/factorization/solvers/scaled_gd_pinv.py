"""ScaledGD with a pseudo-inverse, for over-parametrised problems."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nora.factorization.linalg import State, gram_pinv, require_positive
from nora.factorization.problems.base import Problem
from nora.factorization.schedules import Step, require_step, step_at


@dataclass(frozen=True, kw_only=True)
class Solver:
    """X+ = X - eta (X X^T - A) X (X^T X)^+   (26); asymmetric (35), with X_1 = X_0 and Jacobi order.

    ``rcond``: eigenvalues of X^T X below rcond * largest count as zero. It decides whether noise outside A's column
    space is inverted (the floor of Figure 4(b)'s dotted curves); clean Nystrom runs do not depend on it.
    """

    eta: Step
    rcond: float = 1e-10

    def __post_init__(self) -> None:
        require_step(self.eta)
        require_positive(self.rcond, "rcond")

    def step(self, problem: Problem, state: State, t: int) -> State:
        eta = step_at(self.eta, t)
        X, Y = state
        X_gram = gram_pinv(X, self.rcond)

        def moved(M: Tensor, projector: Tensor, A_inverse: Tensor) -> Tensor:
            return M - eta * (M @ projector - A_inverse)

        if Y is None:
            return State(moved(X, X_gram.projector, problem.apply(X @ X_gram.inverse)))
        Y_next = moved(Y, X_gram.projector, problem.apply_transposed(X @ X_gram.inverse))
        if t == 0:
            return State(X, Y_next)
        Y_gram = gram_pinv(Y, self.rcond)
        return State(moved(X, Y_gram.projector, problem.apply(Y @ Y_gram.inverse)), Y_next)

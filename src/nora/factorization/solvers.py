"""Solvers: a frozen dataclass each, with ``step``. A solver never draws and never decides when to stop."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor

from nora.factorization.linalg import State, gram_pinv, pick, require_positive, right_inverse_transposed
from nora.factorization.problems import Problem, gradient


class Solver(Protocol):
    """What the loop needs; ``name`` is what conf/solver calls it."""

    name: ClassVar[str]

    def step(self, problem: Problem, state: State, t: int) -> State:
        """The iterate t + 1 from the iterate t."""


def names() -> list[str]:
    """The solvers of this file."""
    return sorted(_solvers())


def load(name: str) -> type[Solver]:
    """solvers.load("scaled_gd") is ``ScaledGD``; ValueError for a name that is not there."""
    return pick(_solvers(), name, "solver")


def _solvers() -> dict[str, type[Solver]]:
    found = [cast(type[Solver], c) for _, c in inspect.getmembers(sys.modules[__name__], inspect.isclass)]
    return {c.name: c for c in found if c.__module__ == __name__ and isinstance(vars(c).get("name"), str)}


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """``values[0]`` for ``length`` iterations, then ``values[1]``, ...; the last value stays."""

    values: tuple[float, ...]
    length: int

    def __post_init__(self) -> None:
        if not self.values or self.length < 1:
            raise ValueError(
                f"Staircase: given {len(self.values)} values and length {self.length}, required at least 1 of each"
            )
        for value in self.values:
            require_positive(value, "eta")

    def __call__(self, t: int) -> float:
        return self.values[min(t // self.length, len(self.values) - 1)]


Step = float | Staircase


def require_step(eta: Step) -> None:
    """A constant must be finite and > 0; a staircase checked itself."""
    if not isinstance(eta, Staircase):
        require_positive(eta, "eta")


def step_at(eta: Step, t: int) -> float:
    """eta_t."""
    return eta(t) if isinstance(eta, Staircase) else eta


@dataclass(frozen=True, kw_only=True)
class GD:
    """Gradient descent.

    X+ = X - eta (X X^T - A) X; for (4) both gradients are taken at (X, Y)."""

    name: ClassVar[str] = "gd"

    eta: Step

    def __post_init__(self) -> None:
        require_step(self.eta)

    def step(self, problem: Problem, state: State, t: int) -> State:
        eta = step_at(self.eta, t)
        G = gradient(problem, state)
        if state.Y is None or G.Y is None:
            return State(state.X - eta * G.X)
        return State(state.X - eta * G.X, state.Y - eta * G.Y)


@dataclass(frozen=True, kw_only=True)
class AltGD:
    """Alternating gradient descent (Ward and Kolda, 2023), asymmetric only.

    X+ = X - eta (X Y^T - A) Y, then Y+ = Y - eta (X+ Y^T - A)^T X+ with the new X (Gauss-Seidel order)."""

    name: ClassVar[str] = "altgd"

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


@dataclass(frozen=True, kw_only=True)
class ScaledGD:
    """ScaledGD (Tong et al., 2021), and for (4) the paper's version with a modified first step.

    X+ = X - eta (X X^T - A) X (X^T X)^{-1} = (1 - eta) X + eta A X (X^T X)^{-1}   (2).

    Asymmetric (6): X_1 = X_0, and both updates read (X_t, Y_t) (Jacobi order). The second form costs one product
    with A, and a part of X outside A's column space shrinks by exactly 1 - eta instead of being recomputed.
    """

    name: ClassVar[str] = "scaled_gd"

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


@dataclass(frozen=True, kw_only=True)
class ScaledGDLambda:
    """ScaledGD(lambda): ScaledGD with a damped preconditioner (Xu et al., 2023).

    X+ = X - eta (X X^T - A) X (X^T X + lambda I)^{-1}; ``damping`` is lambda, added to the Gram matrix.

    Asymmetric: both updates read (X_t, Y_t); Y_0 = 0 needs no modified first step, since its gradient in X is zero.
    Xu et al. recommend lambda of the order of the smallest non-zero value of A.
    """

    name: ClassVar[str] = "scaled_gd_lambda"

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


@dataclass(frozen=True, kw_only=True)
class ScaledGDPinv:
    """ScaledGD with a pseudo-inverse, for over-parametrised problems.

    X+ = X - eta (X X^T - A) X (X^T X)^+   (26); asymmetric (35), with X_1 = X_0 and Jacobi order.

    ``rcond``: eigenvalues of X^T X below rcond * largest count as zero. It decides whether noise outside A's column
    space is inverted (the floor of Figure 4(b)'s dotted curves); clean Nystrom runs do not depend on it.
    """

    name: ClassVar[str] = "scaled_gd_pinv"

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

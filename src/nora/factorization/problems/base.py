"""What a solver, a start and the loop may ask of a problem."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nora.factorization.linalg import State


class Problem(Protocol):
    """A matrix A [m, n] to be written as X X^T or X Y^T with ``rank`` columns."""

    @property
    def symmetric(self) -> bool:
        """True for (1), where Y is X."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    def rank(self) -> int:
        """r, the number of columns of X."""

    @property
    def norm(self) -> Tensor:
        """||A||_F."""

    @property
    def like(self) -> Tensor:
        """A tensor whose dtype and device the iterates share."""

    def apply(self, M: Tensor) -> Tensor:
        """A M."""

    def apply_transposed(self, M: Tensor) -> Tensor:
        """A^T M."""

    def metrics(self, state: State) -> dict[str, Tensor]:
        """error, loss, relative and, where A's factors are known and r <= r_A, weak; one number per seed."""


def gradient(problem: Problem, state: State) -> State:
    """The gradients of (1), (X X^T - A) X, or of (4), ((X Y^T - A) Y, (X Y^T - A)^T X): one product with A each."""
    X, Y = state
    if Y is None:
        return State(_times_gram(X, X) - problem.apply(X))
    return State(_times_gram(X, Y) - problem.apply(Y), _times_gram(Y, X) - problem.apply_transposed(X))


def _times_gram(X: Tensor, Y: Tensor) -> Tensor:
    """X (Y^T Y), column-major as the iterates are."""
    product: Tensor = (Y.mT @ Y) @ X.mT
    return product.mT


def distances(problem: Problem, error: Tensor) -> dict[str, Tensor]:
    """The three ways to state one distance: ||.||_F, half its square, and relative to ||A||_F."""
    return {"error": error, "loss": 0.5 * error**2, "relative": error / problem.norm}

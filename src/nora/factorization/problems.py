"""Problems: what is minimised. Exact-, over- and under-parametrised is only rank against r_A.

symmetric   min over X [m, r]            (1/4) ||X X^T - A||_F^2    (1)
asymmetric  min over X [m, r], Y [n, r]  (1/2) ||X Y^T - A||_F^2    (4)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from nora.factorization.linalg import State, frobenius, require_float, require_generator, require_rank


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


def plateau(count: int, *, step: float = 0.01, tail: tuple[float, ...] = ()) -> tuple[float, ...]:
    """1, 1 - step, 1 - 2 step, ... (``count`` values), then ``tail``: the spectra of Appendix E.1.

    plateau(19, tail=(0.01,)) is Figure 1(a, b) and Figure 4; plateau(37, tail=(0.05, 0.025, 0.01)) is Figure 1(c).
    """
    return (*(round(1 - step * i, 12) for i in range(count)), *tail)


def geometric(count: int, kappa: float) -> tuple[float, ...]:
    """From 1 down to 1/kappa in equal ratios."""
    if count < 1 or kappa < 1:
        raise ValueError(f"count, kappa: given {count}, {kappa}, required count >= 1 and kappa >= 1")
    return tuple(kappa ** (-i / max(count - 1, 1)) for i in range(count))


def orthonormal(rows: int, columns: int, generator: object, dtype: torch.dtype) -> Tensor:
    """The Q factor of a Gaussian matrix."""
    checked = require_generator(generator, "the basis of A")
    G = torch.randn(rows, columns, generator=checked, dtype=torch.float64, device=checked.device)
    Q: Tensor = torch.linalg.qr(G).Q
    return Q.to(dtype)


def values(spectrum: Sequence[float], limit: int, dtype: torch.dtype) -> Tensor:
    """The spectrum as a tensor: positive, no longer than ``limit``."""
    s = torch.tensor(list(spectrum), dtype=dtype)
    if not 1 <= len(s) <= limit:
        raise ValueError(
            f"spectrum: given {len(s)} values, required 1 to min(m, n) = {limit}; shorten it or raise m, n"
        )
    check_values(s)
    return s


def tail(s: Tensor, rank: int) -> Tensor:
    """||A_r - A||_F of the best rank-r approximation (Eckart and Young): the norm of all but the r largest values."""
    norm: Tensor = torch.linalg.vector_norm(s.sort(descending=True).values[..., rank:], dim=-1)
    return norm


def through(left: Tensor, s: Tensor, right: Tensor, M: Tensor) -> Tensor:
    """left diag(s) right^T M, formed as its transpose: a batch of seeds folds into one product per factor."""
    product: Tensor = ((M.mT @ right) * s[..., None, :]) @ left.mT
    return product.mT


def check_values(s: Tensor) -> None:
    """Every value finite and > 0 (zeros only lengthen the basis; an indefinite A has no factor X X^T)."""
    require_float(s, "spectrum")
    if bool((s <= 0).any()):
        raise ValueError(
            f"spectrum: given smallest value {float(s.min())}, required all > 0 (A positive semidefinite, zeros left "
            "out); use the asymmetric problem for an indefinite A"
        )


def check_basis(Q: Tensor, s: Tensor, name: str) -> None:
    """Q has s.shape[-1] orthonormal columns."""
    require_float(Q, name)
    if Q.shape[-1] != s.shape[-1]:
        raise ValueError(f"{name}: given {Q.shape[-1]} columns, required one per value of the spectrum ({s.shape[-1]})")
    gap = float((Q.mT @ Q - torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)).abs().max())
    if gap > 1e3 * torch.finfo(Q.dtype).eps:
        raise ValueError(
            f"{name}: given columns off orthonormality by {gap:.1e}, required orthonormal; use torch.linalg.qr"
        )


@dataclass(frozen=True, kw_only=True)
class Symmetric:
    """A = Q diag(s) Q^T is never formed: memory is O(m r), and errors are read in the basis of A.

    Q [..., m, r_A] and s [..., r_A] may carry a leading batch of problems.
    """

    Q: Tensor
    s: Tensor
    rank: int
    symmetric: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        check_values(self.s)
        check_basis(self.Q, self.s, "Q")
        require_rank(self.rank, *self.shape)

    @classmethod
    def make(
        cls,
        *,
        m: int,
        spectrum: Sequence[float],
        rank: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> Symmetric:
        """A random basis under a prescribed spectrum (Appendix E.1)."""
        s = values(spectrum, m, dtype)
        return cls(Q=orthonormal(m, len(s), generator, dtype), s=s, rank=rank)

    @property
    def shape(self) -> tuple[int, int]:
        return self.Q.shape[-2], self.Q.shape[-2]

    @property
    def like(self) -> Tensor:
        return self.Q

    @cached_property
    def norm(self) -> Tensor:
        return tail(self.s, 0)

    def apply(self, M: Tensor) -> Tensor:
        return through(self.Q, self.s, self.Q, M)

    apply_transposed = apply

    def dense(self) -> Tensor:
        """A itself, for tests and for peers that need it."""
        return (self.Q * self.s[..., None, :]) @ self.Q.mT

    def best_error(self) -> Tensor:
        """||A_r - A||_F of the best rank-r approximation (Eckart and Young)."""
        return tail(self.s, self.rank)

    def metrics(self, state: State) -> dict[str, Tensor]:
        """||X X^T - A||_F from X = Q C + E with E orthogonal to Q: no term cancels, so 1e-15 can be read.

        X X^T - A = Q (C C^T - diag s) Q^T + Q C E^T + E C^T Q^T + E E^T, four mutually orthogonal blocks: what
        QR([X Q]) gives, with products only. weak = ||X^T A^+ X - I||_F (Definition 1).
        """
        C = self.Q.mT @ state.X
        E = state.X - self.Q @ C
        G = E.mT @ E
        core = frobenius(C @ C.mT - torch.diag_embed(self.s)) ** 2
        cross = (C @ G * C).sum((-2, -1)).clamp_min(0)
        found = distances(self, (core + 2 * cross + frobenius(G) ** 2).sqrt())
        if self.rank <= self.s.shape[-1]:
            found["weak"] = frobenius(C.mT @ (C / self.s[..., :, None]) - torch.eye(self.rank).to(C))
        return found


@dataclass(frozen=True, kw_only=True)
class Asymmetric:
    """A = U diag(s) V^T is never formed; U [..., m, r_A], V [..., n, r_A], s [..., r_A]."""

    U: Tensor
    V: Tensor
    s: Tensor
    rank: int
    symmetric: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_values(self.s)
        check_basis(self.U, self.s, "U")
        check_basis(self.V, self.s, "V")
        require_rank(self.rank, *self.shape)

    @classmethod
    def make(
        cls,
        *,
        m: int,
        n: int,
        spectrum: Sequence[float],
        rank: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> Asymmetric:
        """Random bases under a prescribed spectrum."""
        s = values(spectrum, min(m, n), dtype)
        U, V = orthonormal(m, len(s), generator, dtype), orthonormal(n, len(s), generator, dtype)
        return cls(U=U, V=V, s=s, rank=rank)

    @property
    def shape(self) -> tuple[int, int]:
        return self.U.shape[-2], self.V.shape[-2]

    @property
    def like(self) -> Tensor:
        return self.U

    @cached_property
    def norm(self) -> Tensor:
        return tail(self.s, 0)

    def apply(self, M: Tensor) -> Tensor:
        return through(self.U, self.s, self.V, M)

    def apply_transposed(self, M: Tensor) -> Tensor:
        return through(self.V, self.s, self.U, M)

    def dense(self) -> Tensor:
        """A itself, for tests and for peers that need it."""
        return (self.U * self.s[..., None, :]) @ self.V.mT

    def best_error(self) -> Tensor:
        """||A_r - A||_F of the best rank-r approximation (Eckart and Young)."""
        return tail(self.s, self.rank)

    def metrics(self, state: State) -> dict[str, Tensor]:
        """||X Y^T - A||_F from X = U C + E, Y = V D + F with E, F orthogonal to U, V: no term cancels.

        weak = ||Y^T A^+ X - I||_F (Definition 2).
        """
        X, Y = state
        assert Y is not None
        C, D = self.U.mT @ X, self.V.mT @ Y
        E, F = X - self.U @ C, Y - self.V @ D
        GE, GF = E.mT @ E, F.mT @ F
        core = frobenius(C @ D.mT - torch.diag_embed(self.s)) ** 2
        cross = ((C @ GF * C).sum((-2, -1)) + (D @ GE * D).sum((-2, -1))).clamp_min(0)
        found = distances(self, (core + cross + (GE * GF).sum((-2, -1)).clamp_min(0)).sqrt())
        if self.rank <= self.s.shape[-1]:
            found["weak"] = frobenius(D.mT @ (C / self.s[..., :, None]) - torch.eye(self.rank).to(C))
        return found

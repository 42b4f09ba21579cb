"""min (1/2) ||X Y^T - A||_F^2 (4) with A = U diag(s) V^T known by its factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from nora.factorization.linalg import State, frobenius, require_rank
from nora.factorization.problems._factors import check_basis, check_values, orthonormal, tail, through, values
from nora.factorization.problems.base import distances


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

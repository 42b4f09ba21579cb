"""min (1/4) ||X X^T - A||_F^2 (1) with A = Q diag(s) Q^T known by its factors."""

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

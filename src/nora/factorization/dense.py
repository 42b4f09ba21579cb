"""The same two problems for an A given as a dense matrix whose factors are not known."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from nora.factorization.linalg import State, frobenius, require_float, require_rank
from nora.factorization.problems import distances

# Rows of X Y^T - A held at once while the error is taken: 512 x 20,000 float64 is 80 MB.
ROWS = 512


def _distance(A: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    """||X Y^T - A||_F in row blocks, per seed."""
    blocks = [frobenius(X[..., i : i + ROWS, :] @ Y.mT - A[i : i + ROWS]) for i in range(0, A.shape[0], ROWS)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(blocks), dim=0)
    return norm


def _require_matrix(A: Tensor) -> None:
    if A.dim() != 2:
        raise ValueError(f"A: given a tensor of shape {tuple(A.shape)}, required a matrix (two dimensions)")
    require_float(A, "A")


@dataclass(frozen=True, kw_only=True)
class _Dense:
    """What both have of a matrix."""

    A: Tensor
    rank: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.A.shape[0], self.A.shape[1]

    @property
    def like(self) -> Tensor:
        return self.A

    @cached_property
    def norm(self) -> Tensor:
        return frobenius(self.A)

    def apply(self, M: Tensor) -> Tensor:
        return self.A @ M

    def apply_transposed(self, M: Tensor) -> Tensor:
        return self.A.mT @ M


@dataclass(frozen=True, kw_only=True)
class DenseSymmetric(_Dense):
    """(1) for a dense positive semidefinite A [m, m]."""

    symmetric: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _require_matrix(self.A)
        m, n = self.A.shape
        way_out = "use DenseAsymmetric, which takes any matrix"
        if m != n:
            raise ValueError(f"A: given {m} x {n}, required square for the symmetric problem; {way_out}")
        require_rank(self.rank, m, n)
        slack = m * torch.finfo(self.A.dtype).eps
        skew = float((self.A - self.A.mT).abs().max() / self.A.abs().max().clamp_min(torch.finfo(self.A.dtype).tiny))
        if skew > slack:
            raise ValueError(
                f"A: given max |A - A^T| / max |A| = {skew:.1e}, required symmetric; symmetrise it or {way_out}"
            )
        # Cholesky of a hair more than A decides definiteness at a fraction of an eigendecomposition's cost.
        shift = slack * float(self.norm)
        shifted = self.A + shift * torch.eye(m, dtype=self.A.dtype, device=self.A.device)
        if int(torch.linalg.cholesky_ex(shifted).info) != 0:
            lowest = float(torch.linalg.eigvalsh(self.A)[0])
            raise ValueError(f"A: given smallest eigenvalue {lowest:.3e}, required positive semidefinite; {way_out}")

    def metrics(self, state: State) -> dict[str, Tensor]:
        return distances(self, _distance(self.A, state.X, state.X))


@dataclass(frozen=True, kw_only=True)
class DenseAsymmetric(_Dense):
    """(4) for a dense A [m, n]."""

    symmetric: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        _require_matrix(self.A)
        require_rank(self.rank, *self.shape)

    def metrics(self, state: State) -> dict[str, Tensor]:
        assert state.Y is not None
        return distances(self, _distance(self.A, state.X, state.Y))

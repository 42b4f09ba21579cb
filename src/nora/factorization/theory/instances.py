"""From a vector of unconstrained numbers to an instance of a theorem, so that a search can move through instances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nora.factorization.linalg import State, frobenius
from nora.factorization.problems import Asymmetric, Symmetric

# Rounding grows with the square of the condition numbers; identities are tested to 1e-10, so these stay moderate.
KAPPA, CONDITION = 10.0, 30.0


class Core(NamedTuple):
    """A spectrum s [N, r_A] with largest value 1 and a sketch W = Q^T Omega [N, r_A, r]: X_0 = Q diag(s) W."""

    s: Tensor
    W: Tensor
    valid: Tensor


def core(p: Tensor, r_A: int, r: int, *, kappa: float = KAPPA, condition: float = CONDITION) -> Core:
    """Spectra of condition number up to ``kappa``; sketches of condition number up to ``condition`` are valid."""
    u, w = p[:, :r_A].sigmoid(), p[:, r_A : r_A + r_A * r]
    s = (-u * torch.log(torch.tensor(kappa))).exp().sort(-1, descending=True).values
    W = w.reshape(-1, r_A, r)
    sigma = torch.linalg.svdvals(W)
    return Core(s / s[:, :1], W, sigma[:, -1] * condition > sigma[:, 0])


def core_size(r_A: int, r: int) -> int:
    """How many numbers ``core`` reads."""
    return r_A + r_A * r


def basis(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns."""
    Q: Tensor = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q
    return Q


def symmetric(c: Core, Q: Tensor) -> tuple[Symmetric, State]:
    """The batch of problems with these spectra, and their Nystrom starts."""
    r = c.W.shape[-1]
    return Symmetric(Q=Q, s=c.s, rank=r), State(Q @ (c.s[:, :, None] * c.W))


def asymmetric(c: Core, U: Tensor, V: Tensor) -> tuple[Asymmetric, State]:
    """As ``symmetric``, with Y_0 = 0 (5)."""
    r = c.W.shape[-1]
    X = U @ (c.s[:, :, None] * c.W)
    return Asymmetric(U=U, V=V, s=c.s, rank=r), State(X, X.new_zeros(len(X), V.shape[0], r))


def relative(difference: Tensor, *sizes: Tensor) -> Tensor:
    """||difference||_F over the sum of the norms of what was subtracted."""
    return frobenius(difference) / sum(frobenius(M) for M in sizes)


def smallest(B: Tensor) -> Tensor:
    """The smallest eigenvalue of a symmetric matrix."""
    values: Tensor = torch.linalg.eigvalsh((B + B.mT) / 2)
    return values[..., 0]


def eye(r: int) -> Tensor:
    """I_r."""
    return torch.eye(r, dtype=torch.float64)


def only(c: Core) -> Core:
    """The valid instances."""
    return Core(c.s[c.valid], c.W[c.valid], c.valid[c.valid])

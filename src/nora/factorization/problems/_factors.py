"""Checks and draws shared by the two problems whose factors are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nora.factorization.linalg import require_float, require_generator


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

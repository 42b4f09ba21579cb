"""The few dense kernels that problems, starts and solvers share; every one works on a leading batch of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Chosen = TypeVar("Chosen")


class State(NamedTuple):
    """The iterate: X [..., m, r] and, for the asymmetric problem only, Y [..., n, r]."""

    X: Tensor
    Y: Tensor | None = None


def require_dtype(tensor: Tensor, name: str) -> None:
    """Refuse integers, complex numbers and float16."""
    if tensor.dtype == torch.float16:
        raise ValueError(
            f"{name}: given dtype float16, required float64, float32 or bfloat16 "
            "(float16 overflows at 65504); convert with .to(torch.float32)"
        )
    if not tensor.dtype.is_floating_point:
        raise ValueError(f"{name}: given dtype {tensor.dtype}, required a real floating type; use .to(torch.float64)")


def require_float(tensor: Tensor, name: str) -> None:
    """Refuse what no solver can work with: integers, float16, non-finite entries."""
    require_dtype(tensor, name)
    if not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name}: given {count} non-finite entries, required finite ones; clean the data first")


def require_rank(rank: int, m: int, n: int) -> None:
    """An integer, 1 <= rank <= min(m, n)."""
    if not isinstance(rank, int) or not 1 <= rank <= min(m, n):
        raise ValueError(
            f"rank: given {rank}, required 1 <= rank <= min(m, n) = {min(m, n)} for a {m} x {n} matrix; choose an "
            "integer in that range"
        )


def require_generator(generator: object, name: str) -> torch.Generator:
    """Randomness always comes in as a generator: nothing here draws from torch's global state."""
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator: given {generator!r}, required a torch.Generator where {name} draws random numbers; "
            "pass nora.streams.generator(seed, 'init')"
        )
    return generator


def require_positive(value: float, name: str) -> None:
    """0 < value < infinity."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: given {value}, required a finite number > 0")


def gaussian(*shape: int, generator: object, std: float, like: Tensor, name: str) -> Tensor:
    """[Omega]_ij ~ N(0, std^2), drawn in float64 on the generator's device, then cast to ``like``."""
    checked = require_generator(generator, name)
    draw = torch.randn(shape, generator=checked, dtype=torch.float64, device=checked.device)
    return (std * draw).to(device=like.device, dtype=like.dtype)


def stiefel(rows: int, rank: int, *, generator: object, std: float, like: Tensor, name: str) -> Tensor:
    """Omega = std sqrt(rows) U with U uniform on St(rows, rank): orthogonal columns, entries of variance std^2.

    A Gaussian's Q factor is uniform once R's diagonal is made positive (the sign convention of QR is arbitrary).
    """
    Q, R = torch.linalg.qr(gaussian(rows, rank, generator=generator, std=1.0, like=like.double(), name=name))
    signs = torch.where(torch.diagonal(R) < 0, -1.0, 1.0).to(Q)
    Omega: Tensor = std * rows**0.5 * Q * signs
    return Omega.to(like)


def frobenius(M: Tensor) -> Tensor:
    """||M||_F over the last two dimensions."""
    norm: Tensor = torch.linalg.matrix_norm(M)
    return norm


def right_inverse_transposed(X: Tensor) -> Tensor:
    """X (X^T X)^{-1} = Q R^{-T} from X = QR: the Gram matrix, which squares the condition number, is never formed."""
    Q, R = torch.linalg.qr(X)
    diagonal = torch.diagonal(R, dim1=-2, dim2=-1).abs()
    smallest, largest = diagonal.amin(-1), diagonal.amax(-1)
    floor = max(X.shape[-2:]) * torch.finfo(X.dtype).eps
    if bool((smallest <= floor * largest).any()):
        worst = float((smallest / largest.clamp_min(torch.finfo(X.dtype).tiny)).min())
        raise ValueError(
            f"X^T X: given a singular Gram matrix (smallest / largest pivot of X = {worst:.1e}, rank < r = "
            f"{X.shape[-1]}), required an invertible one; use scaled_gd_pinv or scaled_gd_lambda, or a smaller rank"
        )
    W: Tensor = torch.linalg.solve_triangular(R.mT, Q, upper=False, left=False)
    return W


class GramPinv(NamedTuple):
    """P = G G^+ and G^+ of G = X^T X, Hermitian, eigenvalues below rcond * largest counted as zero."""

    projector: Tensor
    inverse: Tensor


def gram_pinv(X: Tensor, rcond: float) -> GramPinv:
    """The Hermitian pseudo-inverse of X^T X."""
    values, V = torch.linalg.eigh(X.mT @ X)
    keep = values > rcond * values[..., -1:]
    scaled = torch.where(keep, 1 / torch.where(keep, values, 1.0), 0.0)
    return GramPinv((V * keep.to(V)[..., None, :]) @ V.mT, (V * scaled[..., None, :]) @ V.mT)


def pick(known: Mapping[str, Chosen], name: str, kind: str) -> Chosen:
    """``known[name]``; ValueError that lists what there is."""
    if name not in known:
        raise ValueError(
            f"{kind}: given {name!r}, required one of {', '.join(sorted(known))}; a new one goes into {kind}s.py"
        )
    return known[name]

"""EVA (arXiv 2410.07170): A spans the leading principal components of the layer's inputs, B is zero. PEFT's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nora.adapters.data import principal_components as statistics
from nora.adapters.inits import Factors, zeros

__all__ = ["factors", "statistics"]

PEFT_INIT = True
MOVES_BASE = False
ONE_SIDED = True
DATA = "inputs"
OPTIONS = {"tau": 0.99}
_CAPTURED = (
    0.95  # of what the exact components capture; PEFT's incremental ones stop at a cosine of τ between two steps
)


def factors(
    weight: Tensor,
    rank: int,
    *,
    scaling: float,
    generator: torch.Generator,
    data: Mapping[str, Tensor],
    tau: float = 0.99,
) -> Factors:
    """A = the first r principal components [r, in] of the inputs, by PEFT's incremental PCA; B = 0.

    Every layer keeps its rank: PEFT's redistribution (ρ > 1) would compare adapters of other shapes.
    """
    del scaling, generator, tau
    return Factors(data["components"][:rank].to(torch.float32), zeros(weight.shape[0], rank, weight.device))


def why_not(made: Factors, weight: Tensor, data: Mapping[str, Tensor], *, tau: float = 0.99) -> str | None:
    """A must be orthonormal but for its size, and capture nearly what the exact components of the inputs do."""
    del weight, tau
    A, C = made.A.to(torch.float64), data["covariance"].to(torch.float64)
    A = A * (len(A) ** 0.5 / torch.linalg.norm(A).clamp_min(1e-30))  # of whatever size (method.match)
    off = float(torch.linalg.norm(A @ A.T - torch.eye(len(A), dtype=A.dtype, device=A.device)))
    most = float(torch.linalg.eigvalsh(C)[-len(A) :].sum())
    captured = float((A @ C * A).sum())
    if off > 1e-3 * len(A):
        return f"its rows are not orthonormal (off by {off:.1e})"
    if captured < _CAPTURED * most:
        return f"it captures {captured / most:.3f} of what the exact components of the inputs do, required {_CAPTURED}"
    return None

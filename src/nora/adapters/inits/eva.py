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
_CAPTURED = 0.5  # on the way from any r directions to the exact ones; PEFT's stop where two steps agree to τ


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
    most, chance = float(torch.linalg.eigvalsh(C)[-len(A) :].sum()), len(A) / len(C) * float(C.trace())
    captured = (float((A @ C * A).sum()) - chance) / max(most - chance, 1e-6 * most)
    if off > 1e-3 * len(A):
        return f"its rows are not orthonormal (off by {off:.1e})"
    if most > (1 + 1e-6) * chance and captured < _CAPTURED:
        return f"it captures {captured:.2f} of what the exact components do above any others, required {_CAPTURED}"
    return None

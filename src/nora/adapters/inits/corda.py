"""CorDA (arXiv 2406.05223): the decomposition of W times the covariance of its inputs becomes the adapter. PEFT's."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from nora.adapters.data import scaled_covariances as statistics
from nora.adapters.inits import Factors
from nora.adapters.layers import AdapterLayer

__all__ = ["factors", "statistics"]

PEFT_INIT = True
NAMED = "corda"
MOVES_BASE = True
DATA = "inputs"
OPTIONS = {"method": "ipm"}
ALLOWED = {"method": ("ipm", "kpm")}


def factors(
    weight: Tensor,
    rank: int,
    *,
    scaling: float,
    generator: torch.Generator,
    data: Mapping[str, Tensor],
    method: str = "ipm",
) -> Factors:
    """W C = U S Vᵀ with C the damped covariance of the inputs; A = √(S/s) Vᵀ C⁻¹, B = U √(S/s) of r triplets.

    ``method``: "ipm" (instruction-previewed) takes the largest, "kpm" (knowledge-preserved) the smallest. In float64.
    """
    del generator
    C = _damped(data["covariance"])
    U, S, V = _decomposed(weight, C, rank, method)
    root = (S / scaling).sqrt()
    return Factors((root[:, None] * V.T).to(torch.float32), (U * root).to(torch.float32))


def _damped(covariance: Tensor) -> Tensor:
    """C + 0.01 · mean of its diagonal · I in float64."""
    C = covariance.to(torch.float64)
    return C + 0.01 * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype, device=C.device)


def _decomposed(weight: Tensor, C: Tensor, rank: int, method: str) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, r], S [r] and C⁻¹ V [in, r] of W C = U S Vᵀ, the triplets of ``method``; float64."""
    if method not in ("ipm", "kpm"):
        raise ValueError(f"method: given {method!r}, required 'ipm' or 'kpm'")
    U, S, Vh = torch.linalg.svd(weight.to(torch.float64) @ C, full_matrices=False)
    kept = slice(None, rank) if method == "ipm" else slice(-rank, None)
    return U[:, kept], S[kept], torch.linalg.solve(C, Vh[kept].T)


def make(layer: AdapterLayer, data: Mapping[str, Tensor], *, method: str) -> None:
    """PEFT's ``corda_init``, given the decomposition in float64. (The module of PEFT's own preprocessing imports
    ``attrs``, which peft does not install, and inverts C in float32.)"""
    U, S, V = _decomposed(layer.weight, _damped(data["covariance"]), layer.rank, method)
    base = layer.module.get_base_layer()
    base.eigens = SimpleNamespace(U_WC=U.float(), S_WC=S.float(), V_WC=V.float())
    layer.module.corda_init(layer.adapter, "corda")

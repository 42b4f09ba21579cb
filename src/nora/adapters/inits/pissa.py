"""PiSSA (arXiv 2404.02948): the top singular triplets become the adapter, the base keeps the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors
from nora.adapters.layers import AdapterLayer

PEFT_INIT = "pissa"
MOVES_BASE = True
OPTIONS: dict[str, object] = {}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator) -> Factors:
    """W = U S Vᵀ; A = √(S_r/s) V_rᵀ, B = U_r √(S_r/s); the base becomes W - s B A."""
    del generator
    U, S, Vh = torch.linalg.svd(weight.to(torch.float32), full_matrices=False)
    root = (S[:rank] / scaling).sqrt()
    return Factors(root[:, None] * Vh[:rank], U[:, :rank] * root)


def make(layer: AdapterLayer, data: None) -> None:
    """PEFT's, on an adapter that it made with another start."""
    del data
    layer.module.pissa_init(layer.adapter, "pissa")

"""MiLoRA (arXiv 2406.09044): the smallest singular triplets become the adapter, the base keeps the principal part."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors

PEFT_INIT = True
NAMED = "milora"
MOVES_BASE = True
OPTIONS: dict[str, object] = {}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator) -> Factors:
    """W = U S Vᵀ; A = √(S/s) Vᵀ, B = U √(S/s) of the last r triplets (eq. 3-5); the base becomes W - s B A."""
    del generator
    U, S, Vh = torch.linalg.svd(weight.to(torch.float32), full_matrices=False)
    root = (S[-rank:] / scaling).sqrt()
    return Factors(root[:, None] * Vh[-rank:], U[:, -rank:] * root)

"""LoRA started the other way round (arXiv 2406.08447, "Init[B]"): random B, zero A."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors, zeros

PEFT_INIT = True
MOVES_BASE = False
ONE_SIDED = True
OPTIONS: dict[str, object] = {}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator) -> Factors:
    """B ~ U(-1/√r, 1/√r) (Kaiming with a = √5 of a map with r inputs), A = 0."""
    del scaling
    out_features, in_features = weight.shape
    bound = rank**-0.5
    B = torch.empty(out_features, rank, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)
    return Factors(zeros(rank, in_features, weight.device), B.to(weight.device))

"""PEFT's "gaussian" start, the default of diffusers' DreamBooth script: A ~ N(0, 1/r²), zero B."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors

PEFT_INIT = "gaussian"
MOVES_BASE = False
OPTIONS: dict[str, object] = {}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator) -> Factors:
    """A has independent entries of standard deviation 1/rank, B = 0."""
    del scaling
    out_features, in_features = weight.shape
    A = torch.randn(rank, in_features, generator=generator).div_(rank)
    return Factors(A.to(weight.device), torch.zeros(out_features, rank, device=weight.device))

"""PEFT's "gaussian" start, the default of diffusers' DreamBooth script: A ~ N(0, 1/r²), zero B."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors, standard_normal, zeros

PEFT_INIT = "gaussian"
MOVES_BASE = False
ONE_SIDED = True
OPTIONS: dict[str, object] = {}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator) -> Factors:
    """A has independent entries of standard deviation 1/rank, B = 0."""
    del scaling
    out_features, in_features = weight.shape
    A = standard_normal(rank, in_features, generator).div_(rank)
    return Factors(A.to(weight.device), zeros(out_features, rank, weight.device))

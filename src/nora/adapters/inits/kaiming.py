"""The ordinary LoRA start (PEFT's default): Kaiming-uniform A, zero B."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors, zeros

PEFT_INIT = True
MOVES_BASE = False
ONE_SIDED = True
OPTIONS: dict[str, object] = {}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator) -> Factors:
    """A ~ U(-1/√in, 1/√in) (Kaiming with a = √5), B = 0."""
    del scaling
    out_features, in_features = weight.shape
    bound = in_features**-0.5
    A = torch.empty(rank, in_features, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)
    return Factors(A.to(weight.device), zeros(out_features, rank, weight.device))

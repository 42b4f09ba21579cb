"""PEFT's "orthogonal" start: A and B both random, over orthogonal halves of one rotation, so that B A = 0."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors
from nora.adapters.layers import AdapterLayer

PEFT_INIT = True
MOVES_BASE = False
ROUNDS = True
EVEN_RANK = True
OPTIONS: dict[str, object] = {}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator) -> Factors:
    """A = Q_oddᵀ G₁ᵀ/10, B = G₂ᵀ Q_even/10 with Q a random rotation [r, r], G standard normal, r even."""
    del scaling
    out_features, in_features = weight.shape
    Q, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    first = torch.randn(in_features, rank // 2, generator=generator)
    second = torch.randn(rank // 2, out_features, generator=generator)
    A, B = first.mm(Q[0::2]).T / 10.0, second.T.mm(Q[1::2]) / 10.0
    return Factors(A.contiguous().to(weight.device, torch.float32), B.contiguous().to(weight.device, torch.float32))


def make(layer: AdapterLayer, data: None) -> None:
    """PEFT's."""
    del data
    layer.module.orthogonal_init(layer.adapter)

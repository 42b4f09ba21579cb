"""Nyström sketch of the pretrained weight: NoRA (paper Alg. 1; X0 = W Ω, Y0 = 0)."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors, standard_normal, zeros
from nora.adapters.layers import left_product, right_product

PEFT_INIT = True
MOVES_BASE = False
ONE_SIDED = True
OPTIONS = {"xi": 0.1, "side": "A", "divide_by_scaling": True}


def factors(
    weight: Tensor,
    rank: int,
    *,
    scaling: float,
    generator: torch.Generator,
    xi: float = 0.1,
    side: str = "A",
    divide_by_scaling: bool = True,
) -> Factors:
    """Side "A": A = (ξ/s) G W with G ~ N(0, 1) of shape [rank, out], B = 0. Side "B": B = (ξ/s) W Ω, A = 0.

    ``weight`` is [out, in], ``scaling`` is s = α/r (s = 1 in the formula where ``divide_by_scaling`` is off).
    G and Ω are drawn in float32 on the generator's device; the product is float32, without a float32 copy of W.
    """
    out_features, in_features = weight.shape
    scale = xi / scaling if divide_by_scaling else xi
    if side == "A":
        G = standard_normal(rank, out_features, generator).to(weight.device)
        return Factors(left_product(G, weight).mul_(scale), zeros(out_features, rank, weight.device))
    if side == "B":
        omega = standard_normal(in_features, rank, generator).to(weight.device)
        return Factors(zeros(rank, in_features, weight.device), right_product(weight, omega).mul_(scale))
    raise ValueError(f"side: given {side!r}, required 'A' or 'B'")

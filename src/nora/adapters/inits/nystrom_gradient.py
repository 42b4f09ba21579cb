"""Nyström sketch of the negative gradient (paper, Appendix A.4) where ``nystrom`` takes one of the weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nora.adapters.data import mean_gradients as statistics
from nora.adapters.inits import Factors, nystrom

__all__ = ["factors", "statistics"]

PEFT_INIT = True
MOVES_BASE = False
ONE_SIDED = True
DATA = "gradient"
OPTIONS = {"xi": 0.1, "side": "A", "divide_by_scaling": True}


def factors(
    weight: Tensor,
    rank: int,
    *,
    scaling: float,
    generator: torch.Generator,
    data: Mapping[str, Tensor],
    xi: float = 0.1,
    side: str = "A",
    divide_by_scaling: bool = True,
) -> Factors:
    """Side "A": A = -(ξ/s) G ∇_W f with G ~ N(0, 1) [r, out], B = 0; side "B": B = -(ξ/s) ∇_W f Ω, A = 0."""
    del weight
    return nystrom.factors(
        -data["gradient"], rank, scaling=scaling, generator=generator, xi=xi, side=side,
        divide_by_scaling=divide_by_scaling,
    )  # fmt: skip

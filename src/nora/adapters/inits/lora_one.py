"""LoRA-One (arXiv 2502.01235): the adapter begins with the best rank-r part of one full gradient step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nora.adapters.data import mean_gradients as statistics
from nora.adapters.inits import Factors

__all__ = ["factors", "statistics"]

PEFT_INIT = True
MOVES_BASE = False
CHANGES_OUTPUT = True
DATA = "gradient"
OPTIONS = {"gamma": 128.0}


def factors(
    weight: Tensor,
    rank: int,
    *,
    scaling: float,
    generator: torch.Generator,
    data: Mapping[str, Tensor],
    gamma: float = 128.0,
) -> Factors:
    """-∇_W f = U S Vᵀ; A = √(S_r/(γ S_1)) V_rᵀ, B = U_r √(S_r/(γ S_1)) (Algorithm 1, as its authors' code scales it).

    The base stays, so that the model starts at W + s B A: a step down the gradient.
    """
    del weight, scaling, generator
    U, S, Vh = torch.linalg.svd(-data["gradient"].to(torch.float32), full_matrices=False)
    root = (S[:rank] / (gamma * S[0])).sqrt()
    return Factors(root[:, None] * Vh[:rank], U[:, :rank] * root)

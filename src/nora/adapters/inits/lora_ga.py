"""LoRA-GA (arXiv 2407.05000): A and B from the gradient's singular vectors, taken off the base. PEFT's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import LoraGAConfig
from torch import Tensor

from nora.adapters.data import mean_gradients as statistics
from nora.adapters.inits import Factors, globally
from nora.adapters.layers import AdapterLayer

__all__ = ["factors", "statistics"]

PEFT_INIT = True
NAMED = "lora_ga"
TIMES_RANK = 2
MOVES_BASE = True
DATA = "gradient"
OPTIONS = {"gamma": 16.0}


def factors(
    weight: Tensor,
    rank: int,
    *,
    scaling: float,
    generator: torch.Generator,
    data: Mapping[str, Tensor],
    gamma: float = 16.0,
) -> Factors:
    """∇_W f ≈ U S Vᵀ of rank 2r; A = V[:, :r]ᵀ, B = U[:, r:2r] S[r:2r] · out^¼/√γ (PEFT's "ArB2r" and "stable")."""
    del weight, scaling
    G = data["gradient"].to(torch.float32)
    with globally(generator):
        U, S, V = torch.svd_lowrank(G, q=min(4 * rank, min(G.shape)), niter=4)
    B = U[:, rank : 2 * rank] * S[rank : 2 * rank] * (G.shape[0] ** 0.25 / gamma**0.5)
    return Factors(V.T[:rank].contiguous(), B)


def make(layer: AdapterLayer, data: Mapping[str, Tensor], *, gamma: float) -> None:
    """PEFT's, from the gradient it would have left on the layer."""
    base, gradient = layer.module.get_base_layer(), data["gradient"]
    base._peft_loraga_grad = gradient.T if layer.module.fan_in_fan_out else gradient
    layer.module.lora_ga_init(layer.adapter, LoraGAConfig(stable_gamma=gamma))  # type: ignore[arg-type]

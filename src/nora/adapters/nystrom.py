"""The Nyström init for anybody's PEFT model, in one call."""

from __future__ import annotations

import torch
from torch import nn

from nora.adapters.initialize import initialize_
from nora.adapters.layers import lora_layers
from nora.adapters.proof import InitReport, prove_init


@torch.no_grad()
def nystrom_init_(
    model: nn.Module,
    *,
    xi: float,
    side: str = "A",
    divide_by_scaling: bool = True,
    seed: int = 0,
    adapter_name: str = "default",
    overwrite: bool = False,
) -> InitReport:
    """Starts a LoRA adapter from a Nyström sketch of each pretrained weight (paper Alg. 1): A = (ξ/s) G W, B = 0.

    ``model`` is a PEFT model (or any module with PEFT LoRA layers) before its first training step; ``xi`` > 0 is the
    standard deviation of the sketch. The base weights and the model's output do not change. ``side="B"`` is the
    literal reading of X0 = W Ω: B = (ξ/s) W Ω, A = 0. Each layer draws from its own stream, keyed by ``seed`` and the
    module's name. Refuses (ValueError, the model left as it was) an adapter that looks trained, that is one where the
    factor PEFT starts at zero is not zero, unless ``overwrite``. Call it before the optimiser is made.
    """
    if side not in ("A", "B"):
        raise ValueError(f"side: given {side!r}, required 'A' or 'B'")
    if not overwrite:
        for layer in lora_layers(model, adapter_name):
            if layer.A.any() and layer.B.any():
                raise ValueError(
                    f"{layer.name}: both factors of adapter {adapter_name!r} are non-zero, so it is trained or started "
                    "otherwise; make a fresh one with init_lora_weights=True, or pass overwrite=True"
                )
    initialize_(
        model, "nystrom", seed=seed, adapter_name=adapter_name, xi=xi, side=side, divide_by_scaling=divide_by_scaling
    )
    return prove_init(model, init="nystrom", adapter_name=adapter_name)

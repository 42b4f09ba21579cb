"""The Nyström init for anybody's PEFT model, in one call."""

from __future__ import annotations

import torch
from torch import nn

from nora.adapters.initialize import check_weight, initialize_
from nora.adapters.layers import AdapterLayer, lora_layers
from nora.adapters.proof import InitReport, prove_init


def check_fresh(layers: list[AdapterLayer]) -> None:
    """ValueError where an adapter looks trained: PEFT starts one factor at zero, and here neither is."""
    for layer in layers:
        if layer.A.any() and layer.B.any():
            raise ValueError(
                f"{layer.name}: both factors of adapter {layer.adapter!r} are non-zero, so it is trained or started "
                "otherwise; make a fresh one with init_lora_weights=True, or pass overwrite=True"
            )


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

    ``model`` is a PEFT model (or any module with PEFT LoRA layers: diffusers' ``add_adapter`` too) before its first
    training step. With W [out, in] the frozen weight, A [r, in], B [out, r], s = α/r (rsLoRA: α/√r; 1 where
    ``divide_by_scaling`` is off) and G [r, out] standard normal; ``xi`` > 0 is the sketch's standard deviation.
    ``side="B"`` is the literal reading of X0 = W Ω: B = (ξ/s) W Ω, A = 0. Each layer draws from its own stream, keyed
    by ``seed`` (0 … 2³²-1) and the module's name, so that neither the order of modules nor a wrapper changes the draw.

    Linear, Conv1D, convolutions (the kernel flattened: in = channels · kernel), embeddings (the table transposed: in =
    vocabulary), nn.MultiheadAttention; rank and alpha patterns, rsLoRA, DoRA, several adapters; float16, bfloat16 and
    bitsandbytes' 8/4-bit bases (one layer at a time, the product in float32). The base weights and the model's output
    do not change. Call it before the optimiser is made, before the model is sharded and before torch.compile has run.

    Returns the proof (see ``prove_init``); look at ``report.passed``. Raises ValueError, the model left as it was, for
    an adapter that looks trained (the factor PEFT starts at zero is not) unless ``overwrite``, for ``xi``, ``side``,
    ``seed`` or a rank out of range, no LoRA layer, a weight that is not finite, not floating-point, not whole
    (sharded), merged with an adapter or on the meta device, a grouped convolution, factors shared by two layers.
    """
    if side not in ("A", "B"):
        raise ValueError(f"side: given {side!r}, required 'A' or 'B'")
    if not overwrite:
        layers = lora_layers(model, adapter_name)
        for layer in layers:
            check_weight(layer)
        check_fresh(layers)
    initialize_(
        model, "nystrom", seed=seed, adapter_name=adapter_name, xi=xi, side=side, divide_by_scaling=divide_by_scaling
    )
    return prove_init(model, init="nystrom", adapter_name=adapter_name)

"""``init_lora_weights="nystrom"`` for PEFT, as it would stand in ``peft/tuners/lora/layer.py``.

``nystrom_init`` is the method of ``LoraLayer``; the three lines that call it are in PROPOSAL.md. ``apply`` puts both in
place on the installed PEFT, for the tests here and for trying it.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from peft.utils.integrations import dequantize_module_weight, gather_params_ctx
from peft.utils.other import transpose


def base_parameter(layer: LoraLayer) -> torch.nn.Parameter:
    """The parameter that the adapter adds to, as the base layer keeps it."""
    if isinstance(layer, ParamWrapper):
        return layer.get_param()
    base = layer.get_base_layer()
    return base.in_proj_weight if isinstance(layer, MultiheadAttention) else base.weight


def base_matrices(layer: LoraLayer) -> list[torch.Tensor]:
    """The weight as [out, in]: one matrix, or one per expert of a `ParamWrapper`; kernels of convolutions are flattened."""
    weight = base_parameter(layer).detach()
    if isinstance(layer, ParamWrapper):
        stacked = weight[None] if weight.dim() == 2 else weight
        return list(
            stacked.mT if getattr(layer.get_base_layer(), "is_transposed", False) and weight.dim() == 3 else stacked
        )
    if isinstance(layer, MultiheadAttention):
        return [weight]
    weight = dequantize_module_weight(layer.get_base_layer()).detach().flatten(1)
    return [transpose(weight, getattr(layer, "fan_in_fan_out", False))]


def nystrom_init(self: LoraLayer, adapter_name: str, xi: float = 0.1) -> None:
    """Nyström initialization (NoRA, https://huggingface.co/papers/2410.18965, Alg. 1).

    `lora_A` is a random sketch of the base weight, `(xi / scaling) * G @ W` with standard normal `G` of shape
    `(r, out_features)`, and `lora_B` is zero. As `B @ A == 0`, the base weight does not need to be modified to preserve
    the forward output, so that the adapter is saved, loaded, switched and merged like an ordinary LoRA. Grouped
    convolutions keep the default `lora_A`: it spans all groups, the weight does not.
    """
    lora_A, lora_B = self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight
    # Under `init_empty_weights` (e.g. low_cpu_mem_usage=True) the checkpoint fills the parameters after creation.
    if lora_A.device.type == "meta" or getattr(self.get_base_layer(), "groups", 1) > 1:
        return

    weights = base_matrices(self)
    if not weights[0].is_floating_point():
        raise TypeError(f"Please initialize Nyström under a floating point dtype, got {weights[0].dtype}.")
    rank = self.r[adapter_name]
    sketch = torch.cat([torch.randn(rank, W.shape[0], device=W.device) @ W.to(torch.float32) for W in weights])
    sketch *= xi / self.scaling[adapter_name]
    if not torch.isfinite(sketch).all():
        raise ValueError("Nyström initialization needs a finite base weight.")
    if not sketch.any():
        raise ValueError("Nyström initialization needs a base weight that is not zero: A = B = 0 would never train.")
    lora_A.data = sketch.reshape(lora_A.shape).to(lora_A.dtype)
    torch.nn.init.zeros_(lora_B)


def apply() -> Any:
    """Puts the init into the installed PEFT; returns a function that takes it out again."""
    original = LoraLayer.reset_lora_parameters

    # ``update_layer`` gives every name it does not know to ``reset_lora_parameters``: the patch can be this small here.
    def reset_lora_parameters(self: LoraLayer, adapter_name: str, init_lora_weights: Any) -> None:
        if init_lora_weights == "nystrom" and adapter_name in self.lora_A:
            original(self, adapter_name, True)
            with gather_params_ctx(base_parameter(self)):
                self.nystrom_init(adapter_name)
        else:
            original(self, adapter_name, True if init_lora_weights == "nystrom" else init_lora_weights)

    LoraLayer.nystrom_init = nystrom_init
    LoraLayer.reset_lora_parameters = reset_lora_parameters

    def restore() -> None:
        LoraLayer.reset_lora_parameters = original
        del LoraLayer.nystrom_init

    return restore

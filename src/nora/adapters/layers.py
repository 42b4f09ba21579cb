"""PEFT's LoRA layers of a model, read by module type, under canonical names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

# What wrappers put before a module's own name: PEFT, DistributedDataParallel, torch.compile.
_WRAPPER_PARTS = ("base_model.model.", "module.", "_orig_mod.")


def canonical_name(name: str) -> str:
    """``name`` as the bare model spells it, so that a draw keyed by it does not depend on wrapping."""
    stripped = True
    while stripped:
        stripped = False
        for part in _WRAPPER_PARTS:
            if name.startswith(part):
                name, stripped = name[len(part) :], True
    return name.replace("._orig_mod.", ".")


@dataclass(frozen=True)
class AdapterLayer:
    """One LoRA layer and one of its adapters; ``weight`` [out, in], ``A`` [r, in], ``B`` [out, r]."""

    name: str
    module: Any
    """The PEFT ``LoraLayer``."""
    adapter: str

    @property
    def weight(self) -> Tensor:
        """The frozen weight as [out, in] (a view; Conv1D stores its transpose)."""
        weight: Tensor = self.module.get_base_layer().weight.detach()
        return weight.T if getattr(self.module, "fan_in_fan_out", False) else weight

    @property
    def A(self) -> nn.Parameter:
        parameter: nn.Parameter = self.module.lora_A[self.adapter].weight
        return parameter

    @property
    def B(self) -> nn.Parameter:
        parameter: nn.Parameter = self.module.lora_B[self.adapter].weight
        return parameter

    @property
    def rank(self) -> int:
        return int(self.module.r[self.adapter])

    @property
    def scaling(self) -> float:
        return float(self.module.scaling[self.adapter])


def lora_layers(model: nn.Module, adapter_name: str = "default") -> list[AdapterLayer]:
    """Every linear LoRA layer that carries ``adapter_name``, sorted by canonical name.

    Raises ValueError where there is none, or where a layer is of a kind whose factors are not matrices.
    """
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or adapter_name not in module.lora_A:
            continue
        if not isinstance(module.lora_A[adapter_name], nn.Linear):
            raise ValueError(
                f"{canonical_name(name)}: given a LoRA layer over {type(module.get_base_layer()).__name__}, "
                "required a linear layer; leave it out of target_modules"
            )
        found.append(AdapterLayer(canonical_name(name), module, adapter_name))
    if not found:
        raise ValueError(
            f"adapter {adapter_name!r}: the model has no LoRA layer of that name; "
            "wrap it with peft.get_peft_model(model, LoraConfig(...)) first"
        )
    return sorted(found, key=lambda layer: layer.name)


@torch.no_grad()
def snapshot_weights(model: nn.Module, names: set[str]) -> dict[str, Tensor]:
    """Copies of the weights [out, in] of the modules called ``names``, taken before any adapter exists."""
    return {
        canonical_name(name): module.weight.detach().clone()
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in names and isinstance(getattr(module, "weight", None), Tensor)
    }

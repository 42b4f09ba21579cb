"""One file per variant of LoRA; the folder is the registry.

Each file is a module of literals: ``PEFT``, what it sets in PEFT's ``LoraConfig``; where it has them ``FREEZES``, the
factor that is not trained, and ``OPTIMIZER``, the file of ``optimizers/`` that steps it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from nora import starts
from nora.adapters.layers import lora_layers


def peft_settings(name: str | None) -> dict[str, Any]:
    """What a variant sets in PEFT's ``LoraConfig``; nothing for plain LoRA (None)."""
    return dict(starts.load("variants", name).PEFT) if name else {}


def freeze_(model: nn.Module, name: str | None) -> None:
    """Freezes the factor that the variant does not train, in every LoRA layer of ``model``."""
    if name is not None and getattr(starts.load("variants", name), "FREEZES", None) == "A":
        for layer in lora_layers(model):
            layer.parameter_A.requires_grad_(False)

"""Which starts change the frozen weight, and on which layers one has done so."""

from __future__ import annotations

from collections.abc import Mapping

from peft import LoraConfig, PeftConfig
from torch import nn

from nora.adapters.layers import AdapterLayer

# Prefixes of ``init_lora_weights`` with which PEFT subtracts s B₀ A₀ from the base weight.
_SUBTRACTING = ("pissa", "olora", "corda", "lora_ga")
_MOVING = (*_SUBTRACTING, "loftq")  # LoftQ leaves the quantised weight


def moves_base(config: PeftConfig) -> bool:
    """Whether this start made PEFT change the frozen weights (KaSA drops their smallest singular values)."""
    if not isinstance(config, LoraConfig):
        return False
    kasa = getattr(config, "kasa_config", None) is not None  # PEFT before 0.20 has no such setting
    return kasa or str(config.init_lora_weights).lower().startswith(_MOVING)


def subtracts_start(config: LoraConfig) -> bool:
    """Whether a moved base is W - s B₀ A₀ and nothing else, so that the start's factors give W back."""
    kasa = getattr(config, "kasa_config", None) is not None
    return not kasa and str(config.init_lora_weights).lower().startswith(_SUBTRACTING)


def adapter_configs(model: nn.Module) -> dict[str, PeftConfig]:
    """Every adapter's config by name, wherever in ``model`` it is kept: a PeftModel, a model with ``add_adapter``, or
    either inside a wrapper."""
    found: dict[str, PeftConfig] = {}
    for module in model.modules():
        held = getattr(module, "peft_config", None)
        if isinstance(held, Mapping):
            found.update(held)
    return found


def movers(configs: Mapping[str, PeftConfig], layer: AdapterLayer) -> list[str]:
    """The adapters on this layer whose start moved its weight. PEFT starts embeddings plainly."""
    return [name for name in layer.module.lora_A if name in configs and moves_base(configs[name])]


def why_moved(configs: Mapping[str, PeftConfig], layer: AdapterLayer, *, own_start: bool) -> str | None:
    """Why the layer's weight is not the pretrained one; None where it is. ``own_start``: its own may move it."""
    others = [name for name in movers(configs, layer) if not (own_start and name == layer.adapter)]
    if not others:
        return None
    return (
        f"{layer.name}: the base was moved by the start of adapter {others[0]!r} "
        f"({configs[others[0]].init_lora_weights}), so the pretrained weight is no longer here; "  # type: ignore[attr-defined]
        "put this adapter on a freshly loaded base"
    )

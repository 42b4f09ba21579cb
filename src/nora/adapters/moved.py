"""Which starts change the frozen weight, and on which layers one has done so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from peft import LoraConfig, PeftConfig
from torch import Tensor, nn

from nora import starts
from nora.adapters.layers import AdapterLayer, adapter_layers, canonical_name, wrapper_prefix

# Prefixes of ``init_lora_weights`` with which PEFT subtracts s B₀ A₀ from the base weight.
_SUBTRACTING = ("pissa", "olora", "corda", "lora_ga")
_MOVING = (*_SUBTRACTING, "loftq")  # LoftQ leaves the quantised weight


def _of_ours(config: LoraConfig) -> bool:
    """A start of this package or a user's, which PEFT does not know, that took s B₀ A₀ off the base."""
    return bool(starts.said("inits", str(config.init_lora_weights)).get("MOVES_BASE", False))


def _has_kasa(config: LoraConfig) -> bool:
    """KaSA drops the smallest singular values (PEFT before 0.20 has no such setting)."""
    return getattr(config, "kasa_config", None) is not None


def moves_base(config: PeftConfig) -> bool:
    """Whether this start made PEFT change the frozen weights."""
    return isinstance(config, LoraConfig) and (
        _has_kasa(config) or str(config.init_lora_weights).lower().startswith(_MOVING) or _of_ours(config)
    )


def subtracts_start(config: LoraConfig) -> bool:
    """Whether a moved base is W - s B₀ A₀ and nothing else, so that the start's factors give W back."""
    name = str(config.init_lora_weights)
    known = name.lower().startswith(_SUBTRACTING)
    quantised = starts.said("inits", name).get("QUANTISES", False)
    return not _has_kasa(config) and not quantised and (known or _of_ours(config))


def start_name(config: PeftConfig) -> str:
    """What a message calls this config's start."""
    return "KaSA" if isinstance(config, LoraConfig) and _has_kasa(config) else str(config.init_lora_weights)  # type: ignore[attr-defined]


def adapter_configs(model: nn.Module) -> dict[str, PeftConfig]:
    """Every adapter's config by name, wherever in ``model`` it is kept: a PeftModel, a model with ``add_adapter``, or
    either inside a wrapper."""
    found: dict[str, PeftConfig] = {}
    for module in model.modules():
        held = getattr(module, "peft_config", None)
        if isinstance(held, Mapping):
            found.update(held)
    return found


@dataclass(frozen=True)
class MovedBase:
    """The weights of a model that a start has moved, and the modules that hold each weight (tied ones: several)."""

    movers: Mapping[int, list[tuple[str, str]]]
    """By ``id`` of the weight: names of the layer and of the adapter whose start moved it."""
    owners: Mapping[int, list[str]]
    """By ``id`` of the weight: the canonical names of the modules that read it."""
    configs: Mapping[str, PeftConfig]
    kept: list[Tensor]
    """The moved weights themselves: while they are kept no other tensor (one computed anew) can have their ``id``."""

    def why(self, layer: AdapterLayer, *, own_start: bool) -> str | None:
        """Why the layer's weight is not the pretrained one; None where it is. ``own_start``: its own may move it, but
        then nobody else's."""
        weight = id(layer.held_weight)
        movers = self.movers.get(weight, [])
        others = [by for by in movers if not (own_start and by == (layer.name, layer.adapter))]
        if others:
            name, adapter = others[0]
            kind = start_name(self.configs[adapter])
            where = "" if name == layer.name else f" on {name}, which shares it"
            return (
                f"{layer.name}: the base was moved by the start of adapter {adapter!r} ({kind}){where}, so the "
                "pretrained weight is no longer here; put this adapter on a freshly loaded base"
            )
        if movers and len(self.owners[weight]) > 1:
            return (
                f"{layer.name}: the start of adapter {layer.adapter!r} moved a weight that "
                f"{self.owners[weight][0]} shares, and so moved that too; leave one of them out of target_modules, or "
                "untie them"
            )
        return None


def moved_base(model: nn.Module) -> MovedBase:
    """What the starts of all adapters have moved in ``model``. PEFT starts embeddings plainly."""
    configs = adapter_configs(model)
    movers: dict[int, list[tuple[str, str]]] = defaultdict(list)
    kept: list[Tensor] = []
    for layer in adapter_layers(model):
        if not layer.is_embedding and layer.adapter in configs and moves_base(configs[layer.adapter]):
            kept.append(layer.held_weight)
            movers[id(kept[-1])].append((layer.name, layer.adapter))
    owners: dict[int, list[str]] = defaultdict(list)
    if movers:
        prefix = wrapper_prefix(model)
        for name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)].append(canonical_name(name.removesuffix(".base_layer"), prefix))
    return MovedBase(movers, owners, configs, kept)

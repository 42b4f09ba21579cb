"""Writing an init into the factors that PEFT's forward pass reads, and remembering how."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nora import streams
from nora.adapters import inits
from nora.adapters.inits._factors import Factors
from nora.adapters.layers import AdapterLayer, lora_layers

_MARK = "_nora_init"  # attribute of a LoRA layer: adapter name → InitMark


@dataclass(frozen=True)
class InitMark:
    """How one layer's adapter was started; enough to repeat the draw."""

    init: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)


def init_mark(layer: AdapterLayer) -> InitMark | None:
    """The mark ``initialize_`` left on the live layer, None where it left none."""
    return getattr(layer.module, _MARK, {}).get(layer.adapter)


def expected_factors(layer: AdapterLayer, weight: torch.Tensor, mark: InitMark) -> Factors:
    """The init's formula on ``weight`` [out, in], from the seed and the module's canonical name."""
    draw = streams.generator(mark.seed, "init", layer.name)
    return inits.load(mark.init).factors(weight, layer.rank, scaling=layer.scaling, generator=draw, **mark.options)


def _check_layer(layer: AdapterLayer, mark: InitMark) -> None:
    W = layer.weight
    if W.is_meta:
        raise ValueError(f"{layer.name}: the weight is on the meta device; load the pretrained weights first")
    if not W.is_floating_point():
        raise ValueError(f"{layer.name}: given a weight of {W.dtype}, required a floating-point weight")
    if not 1 <= layer.rank <= min(W.shape):
        raise ValueError(f"{layer.name}: given rank {layer.rank}, required 1 to min{tuple(W.shape)} = {min(W.shape)}")
    if not torch.isfinite(W).all():
        raise ValueError(f"{layer.name}: the pretrained weight has non-finite entries; the base model is broken")
    xi = mark.options.get("xi", 1.0)
    if not (math.isfinite(xi) and xi > 0):
        raise ValueError(f"xi: given {xi}, required a finite number > 0")


@torch.no_grad()
def initialize_(
    model: nn.Module, init: str, *, seed: int = 0, adapter_name: str = "default", **options: Any
) -> list[AdapterLayer]:
    """Starts every LoRA layer of ``adapter_name`` by the named init and marks it; the base weight is not touched here.

    Where PEFT itself moves the base (PiSSA, OLoRA) it has already written the factors at construction and only the
    mark is left. All checks come before the first write: a ValueError leaves the model as it was.
    """
    module = inits.load(init)
    unknown = sorted(set(options) - set(module.OPTIONS))
    if unknown:
        raise ValueError(f"{init}: given {', '.join(unknown)}, allowed {', '.join(module.OPTIONS) or 'no options'}")
    mark = InitMark(init, seed, {**module.OPTIONS, **options})
    layers = lora_layers(model, adapter_name)
    for layer in layers:
        _check_layer(layer, mark)
    for layer in layers:
        if not module.MOVES_BASE:
            A, B = expected_factors(layer, layer.weight, mark)
            layer.A.copy_(A)
            layer.B.copy_(B)
        layer.module.__dict__.setdefault(_MARK, {})[layer.adapter] = mark
    return layers

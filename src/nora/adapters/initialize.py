"""Writing an init into the factors that PEFT's forward pass reads, and remembering how."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nora import streams
from nora.adapters import inits
from nora.adapters.inits import Factors
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


def _check_options(mark: InitMark) -> None:
    xi = mark.options.get("xi", 1.0)
    if not (math.isfinite(xi) and xi > 0):
        raise ValueError(f"xi: given {xi}, required a finite number > 0")
    side = mark.options.get("side", "A")
    if side not in ("A", "B"):
        raise ValueError(f"side: given {side!r}, required 'A' or 'B'")


def check_weight(layer: AdapterLayer) -> None:
    """ValueError where the layer's frozen weight is not here, whole, unmerged and of a floating dtype, or the rank too
    large."""
    stored = layer.held_weight
    if stored.is_meta or layer.A.is_meta or layer.B.is_meta:
        raise ValueError(f"{layer.name}: the weight is on the meta device; load the pretrained weights first")
    # DTensor (FSDP 2, tensor parallelism) has a mesh, a parameter under DeepSpeed's ZeRO-3 an id.
    if hasattr(stored, "device_mesh") or hasattr(stored, "ds_id"):
        raise ValueError(
            f"{layer.name}: given a sharded weight ({type(stored).__name__}), required a whole one; "
            "start the adapter before the model is sharded"
        )
    if layer.module.merged:
        merged = ", ".join(layer.module.merged_adapters)
        raise ValueError(
            f"{layer.name}: given a weight with {merged} merged into it, required the pretrained one; "
            "call model.unmerge_adapter() first"
        )
    W = layer.weight
    if not W.is_floating_point():
        raise ValueError(
            f"{layer.name}: given a weight of {W.dtype}, required a floating-point weight "
            "(8 and 4 bit ones are read where bitsandbytes quantised them)"
        )
    wanted = (layer.B.shape[0], layer.A.flatten(1).shape[1])
    if tuple(W.shape) != wanted:
        raise ValueError(
            f"{layer.name}: given a weight of shape {tuple(W.shape)}, required {wanted} as the adapter's; "
            "a flattened or sharded weight must be whole: start the adapter before the model is sharded"
        )
    if not 1 <= layer.rank <= min(W.shape):
        raise ValueError(f"{layer.name}: given rank {layer.rank}, required 1 to min{tuple(W.shape)} = {min(W.shape)}")


def check_untied(layers: list[AdapterLayer]) -> None:
    """ValueError where two layers share a factor (PEFT's ``ensure_weight_tying``): two starts cannot both hold."""
    owners: dict[int, str] = {}
    for layer in layers:
        for factor in (layer.A, layer.B):
            owner = owners.setdefault(factor.data_ptr(), layer.name) if factor.numel() else layer.name
            if owner != layer.name:
                raise ValueError(
                    f"{layer.name}: shares a factor with {owner}, so that one start would overwrite the other; "
                    "make the adapter with ensure_weight_tying=False"
                )


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
    _check_options(mark)
    layers = lora_layers(model, adapter_name)
    for layer in layers:
        check_weight(layer)
    check_untied(layers)
    if not module.MOVES_BASE:
        made = [_finite_factors(layer, mark) for layer in layers]
        for layer, factors in zip(layers, made, strict=True):
            write_factors(layer, factors)
    for layer in layers:
        layer.module.__dict__.setdefault(_MARK, {})[layer.adapter] = mark
    return layers


def write_factors(layer: AdapterLayer, factors: Factors) -> None:
    """Copies A [r, in] and B [out, r] into the parameters the forward pass reads, in their dtype and shape."""
    layer.A.copy_(factors.A.reshape(layer.A.shape))
    layer.B.copy_(factors.B.reshape(layer.B.shape))


def _finite_factors(layer: AdapterLayer, mark: InitMark) -> Factors:
    """The expected factors; a sketch of a weight with one non-finite entry is itself not finite, so W is read once."""
    made = expected_factors(layer, layer.weight, mark)
    if not all(bool(torch.isfinite(factor).all()) for factor in made):
        if bool(torch.isfinite(layer.weight).all()):
            given = ", ".join(f"{key} {value}" for key, value in mark.options.items())
            raise ValueError(f"{layer.name}: given {given}: the factors overflow float32, required a smaller start")
        raise ValueError(f"{layer.name}: the pretrained weight has non-finite entries; the base model is broken")
    return made

"""Writing an init into the factors that PEFT's forward pass reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from nora import streams
from nora.adapters import inits
from nora.adapters.inits import Factors
from nora.adapters.layers import AdapterLayer, lora_layers
from nora.adapters.moved import moved_base
from nora.adapters.surroundings import full_precision

Option = float | str | bool


@dataclass(frozen=True)
class Start:
    """How an adapter was started: with the layers' names, enough to repeat every draw. ``initialize_`` returns it,
    ``prove_init`` takes it; options left out have the init's defaults (``nystrom``: ξ = 0.1, side A, divided by s)."""

    init: str
    seed: int = 0
    options: Mapping[str, Option] = field(default_factory=dict)


def expected_factors(layer: AdapterLayer, weight: torch.Tensor, start: Start) -> Factors:
    """The init's formula on ``weight`` [out, in], from the seed and the module's canonical name, in float32."""
    draw = streams.generator(start.seed, "init", layer.name)
    formula = inits.load(start.init).factors
    made: Factors = formula(weight, layer.rank, scaling=layer.scaling, generator=draw, **start.options)
    return made


def _check_options(start: Start) -> None:
    allowed = inits.load(start.init).OPTIONS
    unknown = sorted(set(start.options) - set(allowed))
    if unknown:
        raise ValueError(f"{start.init}: given {', '.join(unknown)}, allowed {', '.join(allowed) or 'no options'}")
    xi = start.options.get("xi", 1.0)
    if not (isinstance(xi, int | float) and math.isfinite(xi) and xi > 0):
        raise ValueError(f"xi: given {xi}, required a finite number > 0")
    side = start.options.get("side", "A")
    if side not in ("A", "B"):
        raise ValueError(f"side: given {side!r}, required 'A' or 'B'")


def check_weight(layer: AdapterLayer) -> None:
    """ValueError where the layer's frozen weight is not here, whole, unmerged and of a floating dtype."""
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


def check_unmoved(model: nn.Module, layers: Sequence[AdapterLayer], *, own_start: bool = False) -> None:
    """ValueError where PEFT's start of an adapter has changed a layer's weight (``own_start``: of another adapter)."""
    moved = moved_base(model)
    for layer in layers:
        reason = moved.why(layer, own_start=own_start)
        if reason is not None:
            raise ValueError(reason)


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
    model: nn.Module, init: str, *, seed: int = 0, adapter_name: str = "default", **options: Option
) -> Start:
    """Starts every LoRA layer of ``adapter_name`` by the named init; returns what ``prove_init`` needs to repeat it.

    Where PEFT itself moves the base (PiSSA, OLoRA) it has already written the factors at construction and nothing is
    written. The base weight is not touched here. All checks come before the first write: a ValueError leaves the model
    as it was.
    """
    module = inits.load(init)
    start = Start(init, seed, {**module.OPTIONS, **options})
    _check_options(start)
    layers = lora_layers(model, adapter_name)
    check_unmoved(model, layers, own_start=module.MOVES_BASE)
    for layer in layers:
        check_weight(layer)
    check_untied(layers)
    if not module.MOVES_BASE:
        with full_precision():
            made = [_usable_factors(layer, start) for layer in layers]
        for layer, factors in zip(layers, made, strict=True):
            write_factors(layer, factors)
    return start


def write_factors(layer: AdapterLayer, factors: Factors) -> None:
    """Copies A [r, in] and B [out, r] into the parameters the forward pass reads, in their dtype and shape."""
    layer.A.copy_(factors.A.reshape(layer.A.shape))
    layer.B.copy_(factors.B.reshape(layer.B.shape))


def rounded(layer: AdapterLayer, factors: Factors) -> Factors:
    """The factors as the layer's own parameters can hold them (a half-precision adapter rounds)."""
    return Factors(factors.A.to(layer.A.dtype), factors.B.to(layer.B.dtype))


def _usable_factors(layer: AdapterLayer, start: Start) -> Factors:
    """The expected factors; ValueError where they are not finite, or all zero, in the adapter's dtype.

    A sketch of a weight with one non-finite entry is itself not finite, so W is read once.
    """
    made = rounded(layer, expected_factors(layer, layer.weight, start))
    given = ", ".join(f"{key} {value}" for key, value in start.options.items())
    dtype = str(layer.A.dtype).removeprefix("torch.")
    if not all(bool(torch.isfinite(factor).all()) for factor in made):
        if bool(torch.isfinite(layer.weight).all()):
            raise ValueError(f"{layer.name}: given {given}: the factors overflow {dtype}, required a smaller start")
        raise ValueError(f"{layer.name}: the pretrained weight has non-finite entries; the base model is broken")
    if not any(bool(factor.any()) for factor in made):
        if bool(layer.weight.any()):
            raise ValueError(f"{layer.name}: given {given}: the factors vanish in {dtype}, required a larger start")
        raise ValueError(
            f"{layer.name}: the pretrained weight is zero and so is its sketch: A = B = 0 is a saddle that no step "
            "leaves; leave the layer out of target_modules, or give it an adapter of its own with PEFT's ordinary start"
        )
    return made

"""Writing an init into the factors that PEFT's forward pass reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from types import ModuleType
from typing import Any

import torch
from torch import nn

from nora import starts, streams
from nora.adapters import inits
from nora.adapters.data import Loss, Statistics, Stream, check_matrix
from nora.adapters.inits import Factors
from nora.adapters.layers import AdapterLayer, check_untied, lora_layers
from nora.adapters.moved import adapter_configs, moved_base
from nora.adapters.surroundings import full_precision

Option = float | str | bool


@dataclass(frozen=True)
class Start:
    """How an adapter was started: with the layers' names, enough to repeat every draw. ``initialize_`` returns it,
    ``prove_init`` takes it; options left out have the init's defaults (``nystrom``: ξ = 0.1, side A, divided by s)."""

    init: str
    seed: int = 0
    options: Mapping[str, Option] = field(default_factory=dict)
    statistics: Statistics | None = field(default=None, repr=False, compare=False)
    """What a data-driven start took from its training rows."""
    size_of: str | None = None
    """The start whose expected ‖A‖ the non-zero factor was scaled to ("kaiming", "gaussian"); None: its own size."""


def expected_factors(layer: AdapterLayer, weight: torch.Tensor, start: Start) -> Factors:
    """The init's formula on ``weight`` [out, in], from the seed and the module's canonical name, in float32."""
    draw = streams.generator(start.seed, "init", layer.name)
    module = inits.load(start.init)
    given: dict[str, Any] = {"scaling": layer.scaling, "generator": draw, **start.options}
    if hasattr(module, "statistics"):
        if start.statistics is None:
            raise ValueError(f"{start.init}: starts from training rows; call start_(model, {start.init!r}, batches=…)")
        given["data"] = start.statistics[layer.name]
    made: Factors = module.factors(weight, layer.rank, **given)
    return made if start.size_of is None else _resized(made, expected_size(start.size_of, layer), layer)


def expected_size(baseline: str, layer: AdapterLayer) -> float:
    """√E‖A‖² of a random start: Kaiming √(r/3), gaussian √(in/r). ValueError for another baseline."""
    sizes = {"kaiming": (layer.rank / 3) ** 0.5, "gaussian": (layer.A.flatten(1).shape[1] / layer.rank) ** 0.5}
    if baseline not in sizes:
        raise ValueError(f"size_of: given {baseline!r}, required one of {', '.join(sizes)}")
    return sizes[baseline]


def _resized(made: Factors, size: float, layer: AdapterLayer) -> Factors:
    """The non-zero factor at Frobenius norm ``size``."""
    norms = [float(torch.linalg.norm(factor)) for factor in made]
    if min(norms) > 0 or max(norms) == 0:
        raise ValueError(f"{layer.name}: given a start with two factors (or none) to match in size, required one")
    return Factors(*(factor * (size / max(norms)) for factor in made))


def _check_options(start: Start) -> None:
    if needed := starts.missing("inits", start.init):
        raise ValueError(f"{start.init}: takes {needed}, not installed here (pip install {needed})")
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
        raise ValueError(
            f"{layer.name}: the weight is on the meta device; load the pretrained weights first (where accelerate has "
            "offloaded them, start the adapter before the model is dispatched)"
        )
    if not layer.scaling:
        raise ValueError(f"{layer.name}: given lora_alpha=0, which adds nothing whatever is trained; required another")
    narrow = [factor.dtype for factor in (layer.A, layer.B) if factor.dtype.itemsize == 1]
    if narrow:
        raise ValueError(
            f"{layer.name}: given factors of {narrow[0]}, required a dtype that trains; cast the adapter first "
            "(diffusers: cast_training_params(component))"
        )
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


def initialize_(
    model: nn.Module,
    init: str,
    *,
    seed: int = 0,
    adapter_name: str = "default",
    batches: Sequence[Any] | None = None,
    loss: Loss | None = None,
    size_of: str | None = None,
    **options: Option,
) -> Start:
    """Starts every LoRA layer of ``adapter_name`` by the named init; returns what ``prove_init`` needs to repeat it.

    Where PEFT itself moved the base at construction (``init_lora_weights="pissa"``, …) it has already written the
    factors and nothing is written. Other starts with ``MOVES_BASE`` take s B A off the base here. A data-driven start
    (EVA, CorDA, LoRA-GA, LoRA-One, ``nystrom_gradient``) needs ``batches`` of training rows, each given to
    ``loss(model, batch)``, a scalar; left out, ``model(**batch).loss``. ``size_of`` ("kaiming", "gaussian") gives the
    one non-zero factor of a start the expected size of that start's A. All checks come before the first write: a
    ValueError leaves the model as it was.
    """
    module = inits.load(init)
    start = Start(init, seed, {**module.OPTIONS, **options}, size_of=size_of)
    _check_options(start)
    layers = lora_layers(model, adapter_name)
    config = adapter_configs(model).get(adapter_name)
    named = getattr(module, "NAMED", module.PEFT_INIT)
    named = named.format(**start.options) if isinstance(named, str) else named
    made_already = module.MOVES_BASE and getattr(config, "init_lora_weights", True) == named
    check_unmoved(model, layers, own_start=made_already)
    for layer in layers:
        check_weight(layer)
        if (module.MOVES_BASE and not made_already) or hasattr(module, "make"):
            check_matrix(layer)
        _check_rank(layer, module)
    check_untied(layers)
    if hasattr(module, "statistics"):
        if batches is None:
            raise ValueError(f"batches: given none, required batches of training rows with {init}")
        stream = Stream(model, layers, loss or (lambda model, batch: model(**batch).loss), batches)
        ranks = {layer.name: layer.rank for layer in layers}
        takes = {key: value for key, value in start.options.items() if key in signature(module.statistics).parameters}
        start = replace(start, statistics=module.statistics(stream, ranks, **takes))
    if not made_already:
        with torch.no_grad():
            _write(module, layers, start)
        if module.MOVES_BASE and config is not None:
            # What says, at saving, that the base is no longer the pretrained one.
            config.init_lora_weights = named  # type: ignore[attr-defined]
    return start


def _check_rank(layer: AdapterLayer, module: ModuleType) -> None:
    least, times = min(layer.B.shape[0], layer.A.flatten(1).shape[1]), getattr(module, "TIMES_RANK", 0)
    if getattr(module, "EVEN_RANK", False) and layer.rank % 2:
        raise ValueError(f"{layer.name}: rank: given {layer.rank}, required an even one with this start")
    if times * layer.rank > least:
        raise ValueError(
            f"{layer.name}: rank: given {layer.rank}, required at most {least // times}: "
            f"it takes {times}r singular vectors"
        )


def _write(module: ModuleType, layers: Sequence[AdapterLayer], start: Start) -> None:
    with full_precision():
        if hasattr(module, "make"):
            for layer in layers:
                data = None if start.statistics is None else start.statistics[layer.name]
                with streams.seeded(start.seed, "init", layer.name):
                    module.make(layer, data, **start.options)
            return
        made = [_usable_factors(layer, start) for layer in layers]
        for layer, factors in zip(layers, made, strict=True):
            write_factors(layer, factors)
            if module.MOVES_BASE:
                W = layer.weight
                rest = moved_weight(layer, W, factors, start).to(W.dtype)
                layer.held_weight.data = rest.T.contiguous() if layer.module.fan_in_fan_out else rest


def moved_weight(layer: AdapterLayer, weight: torch.Tensor, factors: Factors, start: Start) -> torch.Tensor:
    """The frozen weight [out, in] that a start with ``MOVES_BASE`` leaves of ``weight``, in float32."""
    module = inits.load(start.init)
    if hasattr(module, "base"):
        left: torch.Tensor = module.base(weight, layer.rank, **start.options)
        return left
    return weight.to(torch.float32) - layer.scaling * factors.B.float() @ factors.A.float()


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

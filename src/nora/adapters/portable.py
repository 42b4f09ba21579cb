"""An adapter as a plain LoRA of the *untouched* base: its tensors and config, or the reason why there is no such LoRA.

The tensors are those of PEFT's own ``get_peft_model_state_dict``, under the names that PEFT's loaders read whatever
the live model is wrapped in. Everything that would make the reloaded adapter another one is refused here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nora.adapters.layers import AdapterLayer, adapter_layers, pairs_of, unwrapped_name
from nora.adapters.moved import adapter_configs, moved_base, moves_base, start_name, subtracts_start

PREFIX = "base_model.model."  # of every key in a file of PEFT
_HALF = (torch.float16, torch.bfloat16)


class Portable(NamedTuple):
    """What a file of an adapter holds."""

    state: dict[str, Tensor]
    """On the CPU, whole, no two sharing memory; keys as PEFT writes them: ``base_model.model.….lora_A.weight``."""
    config: PeftConfig
    gathered: bool
    """Whether tensors were sharded: then every process has taken part, and one of them writes."""


class Host(NamedTuple):
    """The part of a model that carries the adapter, and what its tensors' names lack of those in a file."""

    module: nn.Module
    config: LoraConfig
    prefix: str


def host_of(model: nn.Module, adapter_name: str) -> Host:
    """Looks inside wrappers (torch.compile, DistributedDataParallel, FSDP); ValueError for none, or more than one."""
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        configs = None if hasattr(module, "_orig_mod") else getattr(module, "peft_config", None)
        if isinstance(configs, Mapping) and adapter_name in configs:
            found.setdefault(id(configs), module)  # PeftModel, its tuner and the bare model share one
    if not found:
        names = ", ".join(adapter_configs(model)) or "none"
        raise ValueError(f"adapter_name: given {adapter_name!r}, the model's adapters are {names}")
    if len(found) > 1:
        kinds = ", ".join(type(module).__name__ for module in found.values())
        raise ValueError(
            f"adapter {adapter_name!r}: given a model with several parts that carry it ({kinds}); save each"
        )
    (module,) = found.values()
    config: Any = module.peft_config[adapter_name]  # type: ignore[index]
    if not isinstance(config, LoraConfig) or config.peft_type != "LORA":
        raise ValueError(
            f"adapter {adapter_name!r}: given {config.peft_type.value}, required LoRA; use PEFT's save_pretrained"
        )
    prefix = "" if isinstance(module, PeftModel) else "base_model." if isinstance(module, BaseTuner) else PREFIX
    return Host(module, config, prefix)


@torch.no_grad()
def portable_adapter(
    model: nn.Module,
    adapter_name: str,
    *,
    at_start: Mapping[str, Tensor] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    save_embedding_layers: bool = False,
) -> Portable:
    """The adapter's tensors and config as a plain LoRA of the untouched base; the live model stays as it is.

    Where the start moved the base: W + s (B A - B₀ A₀) is a LoRA of twice the rank, [A; A₀] and [B, -B₀]; ``at_start``
    holds A₀ and B₀. Arguments and errors are those of ``save_adapter``.
    """
    prefix = _prefix_of(model, adapter_name)
    if prefix is not None:
        return prefix
    host = host_of(model, adapter_name)
    layers = adapter_layers(host.module, adapter_name)
    reasons = [*_why_not_here(host, layers), *_why_not_convertible(host.config, layers)]
    if reasons:
        raise ValueError(reasons[0])
    named = _tensors(host.module)
    held = get_peft_model_state_dict(
        host.module, dict(named if state_dict is None else state_dict), adapter_name, False, save_embedding_layers
    )
    if state_dict is None:
        _check_nothing_is_left_out(host, adapter_name, named, held)
    gathered = any(isinstance(tensor, DTensor) for tensor in held.values())
    state = {host.prefix + unwrapped_name(name): _own_copy(tensor) for name, tensor in held.items()}
    _check_whole(host, adapter_name, state)
    config = copy.deepcopy(host.config)
    config.init_lora_weights, config.inference_mode = True, True
    _untie(config, state)
    if moves_base(host.config):
        if at_start is None:
            raise ValueError(
                f"adapter {adapter_name!r}: its start moved the base weights, so the untouched base needs the factors "
                "at the start; take factors_at_start(model) before training and pass at_start="
            )
        state = _doubled(state, at_start, _factor_keys(host, adapter_name))
        _double_rank(config)
    return Portable(state, config, gathered)


def _prefix_of(model: nn.Module, adapter_name: str) -> Portable | None:
    """PEFT's own file of a prefix: the keys and values that are read, [tokens, 2 · layers · heads · head size]."""
    config = model.peft_config.get(adapter_name) if isinstance(model, PeftModel) else None
    if not isinstance(config, PrefixTuningConfig):
        return None
    held = get_peft_model_state_dict(model, adapter_name=adapter_name)
    config = copy.deepcopy(config)
    config.inference_mode = True
    return Portable({key: _own_copy(tensor) for key, tensor in held.items()}, config, False)


@torch.no_grad()
def factors_at_start(model: nn.Module, *, adapter_name: str = "default") -> dict[str, Tensor]:
    """Copies of the factors before training: what ``save_adapter`` needs where the start moved the base.

    Raises ValueError where the trained adapter could not be saved with them: the start moved the base in half
    precision (what was rounded away no LoRA gives back), quantised it (LoftQ), or has no plain LoRA (DoRA, KaSA).
    """
    host = host_of(model, adapter_name)
    layers = adapter_layers(host.module, adapter_name)
    reasons = [*_why_not_here(host, layers), *_why_not_convertible(host.config, layers)]
    if reasons:
        raise ValueError(reasons[0])
    held = get_peft_model_state_dict(host.module, _tensors(host.module), adapter_name, False, False)
    named = {host.prefix + unwrapped_name(name): tensor for name, tensor in held.items()}
    return {key: _own_copy(named[key]) for pair in _factor_keys(host, adapter_name) for key in pair}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The live parameters and buffers, under the names ``named_modules`` gives their owners (``state_dict`` renames
    what activation checkpointing wraps, and PEFT then misses it)."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _own_copy(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu().clone(memory_format=torch.contiguous_format)


def _factor_keys(host: Host, adapter_name: str) -> Iterator[tuple[str, str]]:
    """The names in the file of every layer's A and B."""
    for _, key_A, key_B in _held_factors(host, adapter_name):
        yield key_A, key_B


def _held_factors(host: Host, adapter_name: str) -> Iterator[tuple[LoraLayer, str, str]]:
    for name, module in host.module.named_modules():
        if isinstance(module, LoraLayer):
            path = host.prefix + unwrapped_name(name)
            if adapter_name in module.lora_A:
                yield module, f"{path}.lora_A.weight", f"{path}.lora_B.weight"
            elif adapter_name in module.lora_embedding_A:
                yield module, f"{path}.lora_embedding_A", f"{path}.lora_embedding_B"


def _why_not_here(host: Host, layers: list[AdapterLayer]) -> Iterator[str]:
    """Why this base is not the one the adapter would be loaded on."""
    moved = moved_base(host.module)
    for layer in layers:
        reason = moved.why(layer, own_start=True)
        if reason is not None:
            yield reason


def _why_not_convertible(config: LoraConfig, layers: list[AdapterLayer]) -> Iterator[str]:
    """Why W + s (B A - B₀ A₀) on the untouched base is not what the model computes now."""
    if not moves_base(config):
        return
    way_out = "save it with PEFT's own save_pretrained, which repeats the start at loading"
    start = start_name(config)
    if config.use_dora:
        yield f"given DoRA on a base moved by {start}: no plain LoRA equals it; {way_out}"
    if not subtracts_start(config):
        yield f"given a base changed by {start}, more than a subtracted start: no LoRA gives it back; {way_out}"
    for layer in layers:
        if isinstance(layer.module, ParamWrapper):
            yield f"{layer.name}: given an adapter over a bare parameter, moved by {start}; required a layer; {way_out}"
        elif layer.part is not None:
            yield f"{layer.name}: given factors in groups or blocks, moved by {start}; required whole ones; {way_out}"
        elif not layer.is_embedding:
            kept = layer.held_weight.dtype, layer.A.dtype, layer.B.dtype
            rounding = [dtype for dtype in kept if dtype in _HALF or not dtype.is_floating_point]
            if rounding:
                yield (
                    f"{layer.name}: given {rounding[0]} where {start} moved the base, required float32: what was "
                    f"rounded when it moved no LoRA gives back; load the base in float32 before the start, or {way_out}"
                )


def _check_nothing_is_left_out(
    host: Host, adapter_name: str, named: Mapping[str, Tensor], held: Mapping[str, Tensor]
) -> None:
    """ValueError where a trained parameter is in no part of the file: the reloaded model would be another one."""
    if getattr(host.module, "_tp_size", None):
        return  # PEFT has gathered copies, which cannot be told apart from others
    saved = {id(tensor) for tensor in held.values()}
    others = [name for name in adapter_configs(host.module) if name != adapter_name]
    for name, tensor in named.items():
        foreign = any(part in others for part in name.split("."))
        if tensor.requires_grad and id(tensor) not in saved and not foreign:
            raise ValueError(
                f"{unwrapped_name(name)}: given a trainable parameter that is no part of adapter {adapter_name!r} and "
                "would be left out of its file; name its module in modules_to_save, or freeze it if it was not trained"
            )


def _check_whole(host: Host, adapter_name: str, state: Mapping[str, Tensor]) -> None:
    """ValueError where a factor is missing or a shard, or a tensor is not finite."""
    found = list(_held_factors(host, adapter_name))
    if not found:
        raise ValueError(f"adapter {adapter_name!r}: the model has no LoRA layer of that name")
    for module, key_A, key_B in found:
        if key_A not in state or key_B not in state:
            others = ", ".join(adapter_configs(host.module))
            raise ValueError(
                f"{key_A}: PEFT does not find this factor to save; its name may be mixed up with an adapter's "
                f"({others}): give the adapters names that no module has"
            )
        A, B = state[key_A], state[key_B]
        times = pairs_of(module, adapter_name).sharing_columns
        if A.dim() < 2 or B.dim() < 2 or A.numel() == 0 or B.numel() == 0 or A.shape[0] != times * B.shape[1]:
            raise ValueError(
                f"{key_A}: given factors of shapes {tuple(A.shape)} and {tuple(B.shape)}, which are shards; gather the "
                "model first (accelerator.get_state_dict(model)) and pass state_dict="
            )
    for key, tensor in state.items():
        if tensor.is_meta or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{key}: given entries that are not finite (or not there), required finite ones")


def _untie(config: LoraConfig, state: Mapping[str, Tensor]) -> None:
    """Says in the config where factors that it ties (``ensure_weight_tying``) have become two: PEFT ties them as views,
    and moving the model to another device or dtype copies each. Loading would tie them again. ValueError where the
    config cannot say it."""
    tied = getattr(config, "target_modules_to_tie", None) or set()  # not in every PEFT there is
    for name in tied:
        if f"{PREFIX}{name}.lora_embedding_A" in state:
            raise ValueError(
                f"{name}: given a second reader of the table with factors of its own (ensure_weight_tying), which PEFT "
                "does not put back at loading; make the adapter with ensure_weight_tying=False"
            )
    embedding = next((key.removesuffix("A") for key in state if key.endswith(".lora_embedding_A")), None)
    apart = []
    for name in tied:
        head = f"{PREFIX}{name}.lora_"
        if embedding is not None and f"{head}A.weight" in state:
            A, B = state[f"{head}A.weight"], state[f"{head}B.weight"]
            if not (torch.equal(A, state[f"{embedding}B"].T) and torch.equal(B, state[f"{embedding}A"].T)):
                apart.append(name)
    if not apart:
        return
    if isinstance(config.target_modules, str) or getattr(config, "modules_to_tie", None):
        raise ValueError(
            f"{apart[0]}: given factors that are no longer the embedding's, as ensure_weight_tying says (moving the "
            "model after get_peft_model copied them), which loading would tie again; required target_modules as a list "
            "and no tied modules_to_save, or the model moved before get_peft_model"
        )
    config.target_modules = [*(config.target_modules or ()), *apart]
    config.ensure_weight_tying, config.target_modules_to_tie = False, None


def _doubled(
    state: Mapping[str, Tensor], at_start: Mapping[str, Tensor], pairs: Iterator[tuple[str, str]]
) -> dict[str, Tensor]:
    """[A; A₀] and [B, -B₀] in place of A and B; everything else (biases, whole modules, tokens) as it is."""
    doubled = dict(state)
    keys = {key for pair in pairs for key in pair}
    if keys != at_start.keys() or any(state[key].shape != at_start[key].shape for key in keys):
        raise ValueError("at_start: given other tensors than the adapter has; take factors_at_start of this adapter")
    for key in keys:
        is_A = key.endswith((".lora_A.weight", ".lora_embedding_A"))
        start = at_start[key].to("cpu", state[key].dtype)
        doubled[key] = torch.cat([state[key], start if is_A else -start], dim=0 if is_A else 1)
    return doubled


def _double_rank(config: LoraConfig) -> None:
    """Twice every rank, at the same s, which is α/r, or α/√r."""
    growth = math.sqrt(2) if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, growth * config.lora_alpha  # type: ignore[assignment]
    config.rank_pattern = {key: 2 * rank for key, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {key: growth * alpha for key, alpha in (config.alpha_pattern or {}).items()}

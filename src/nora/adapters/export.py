"""Saving an adapter so that stock PEFT and stock diffusers load it right, on the untouched base, whatever its start.

Three ways to lose an adapter on disk, measured in results/tables/deployment.md: a start that moved the base (PiSSA,
OLoRA, …) is meant for a base that the file does not hold; ``pissa_niter_*`` cannot even be repeated at loading, being
random; diffusers' ``save_lora_weights`` drops ``lora_alpha``, and loading then takes α = r.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

_MOVING = ("pissa", "olora", "corda", "lora_ga", "loftq")  # prefixes of init_lora_weights that change the base weight


def _config(model: nn.Module, adapter_name: str) -> LoraConfig:
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    if not isinstance(configs.get(adapter_name), LoraConfig):
        raise ValueError(f"adapter_name: given {adapter_name!r}, the model's LoRA adapters are {', '.join(configs)}")
    return configs[adapter_name]


def moves_base(config: LoraConfig) -> bool:
    """Whether this start made PEFT change the frozen weights."""
    return str(config.init_lora_weights).lower().startswith(_MOVING)


@torch.no_grad()
def factors_at_start(model: nn.Module, *, adapter_name: str = "default") -> dict[str, Tensor]:
    """A copy of the adapter before training: what ``save_adapter`` needs where the start moved the base."""
    _config(model, adapter_name)
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@torch.no_grad()
def portable_adapter(
    model: nn.Module, adapter_name: str, at_start: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], LoraConfig]:
    """The adapter's tensors and config as a plain LoRA of the *untouched* base.

    Where the start moved the base: W + s (B A - B₀ A₀) is a LoRA of twice the rank, [A; A₀] and [B, -B₀].
    """
    config = copy.deepcopy(_config(model, adapter_name))
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    moved = moves_base(config)
    config.init_lora_weights, config.inference_mode = True, True
    if not moved:
        return state, config
    if at_start is None:
        raise ValueError(
            f"adapter {adapter_name!r}: its start moved the base weights, so the untouched base needs the factors at "
            "the start; take factors_at_start(model) before training and pass at_start="
        )
    if state.keys() != at_start.keys():
        raise ValueError("at_start: given other tensors than the adapter has; take factors_at_start of this adapter")
    if config.use_dora:
        raise ValueError(f"adapter {adapter_name!r}: DoRA on a moved base has no plain LoRA equal to it")
    doubled = {}
    for name, tensor in state.items():
        start = at_start[name].to(tensor.device, tensor.dtype)
        dim, sign = (0, 1) if "lora_A" in name else (1, -1)
        doubled[name] = torch.cat([tensor, sign * start], dim=dim)
    growth = math.sqrt(2) if config.use_rslora else 2  # keeps s, which is α/r, or α/√r
    config.r, config.lora_alpha = 2 * config.r, growth * config.lora_alpha  # type: ignore[assignment]
    config.rank_pattern = {key: 2 * rank for key, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {key: growth * alpha for key, alpha in (config.alpha_pattern or {}).items()}
    return doubled, config


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    adapter_name: str = "default",
    at_start: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes an ordinary PEFT adapter (``PeftModel.from_pretrained`` reads it) for the untouched base; its folder.

    ``at_start`` is ``factors_at_start`` of this adapter before training, needed for PiSSA, OLoRA and their like; the
    saved adapter then has twice the rank. Raises ValueError where it is needed and missing.
    """
    state, config = portable_adapter(model, adapter_name, at_start)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    return folder


def save_diffusers_lora(
    component: nn.Module,
    folder: str | Path,
    *,
    adapter_name: str = "default",
    at_start: Mapping[str, Tensor] | None = None,
    prefix: str = "unet",
) -> Path:
    """Writes ``pytorch_lora_weights.safetensors``, which ``pipeline.load_lora_weights`` reads, α included; its path.

    ``component`` is the pipeline's module that carries the adapter, ``prefix`` its name there ("unet",
    "transformer", "text_encoder"). α, rank and alpha patterns go into the file's metadata, as diffusers (≥ 0.34)
    reads them. ``at_start`` and errors as in ``save_adapter``.
    """
    state, config = portable_adapter(component, adapter_name, at_start)
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    packed = {f"{prefix}.{key}": value for key, value in plain.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(packed, indent=2, sort_keys=True)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pytorch_lora_weights.safetensors"
    save_file({f"{prefix}.{name}": tensor for name, tensor in state.items()}, path, metadata=metadata)
    return path

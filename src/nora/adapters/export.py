"""Writing an adapter so that stock PEFT, transformers and diffusers load it right, on the untouched base.

Ways to lose an adapter on disk, some measured in results/tables/deployment.md: a start that moved the base (PiSSA,
OLoRA, …) is meant for a base that the file does not hold; ``pissa_niter_*`` cannot even be repeated at loading, being
random; the keys of a compiled model are read by nobody; diffusers' ``save_lora_weights`` drops ``lora_alpha``, and
loading then takes α = r.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch.distributed
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from nora.adapters.portable import PREFIX, Portable, host_of, portable_adapter


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    adapter_name: str = "default",
    at_start: Mapping[str, Tensor] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    save_embedding_layers: bool = False,
) -> Path:
    """Writes an ordinary PEFT adapter for the untouched base; its folder. ``PeftModel.from_pretrained`` and
    transformers' ``load_adapter`` read it.

    ``model`` is a PEFT model or a model with ``add_adapter``, compiled or wrapped or not, with several adapters or
    one; ``modules_to_save``, biases and trainable tokens go along. ``at_start`` is ``factors_at_start`` of this adapter
    before training, needed for PiSSA, OLoRA and their like; the saved adapter then has twice the rank. FSDP 2's and
    tensor parallelism's shards are gathered (every process calls, the first writes); for FSDP 1 and DeepSpeed's ZeRO 3
    give the gathered ``state_dict``. ``save_embedding_layers``: with the whole embedding tables, for a resized
    vocabulary. A prefix of ``get_peft_model`` is saved as PEFT does it.

    Raises ValueError before a byte is written where the reloaded model would compute something else: another
    adapter's start moved the base, ``at_start`` is needed and missing, the start moved a base in half precision (or
    quantised, DoRA, LoftQ, KaSA), a trainable parameter belongs to no adapter, a factor is a shard, missing or not
    finite.
    """
    made = portable_adapter(
        model, adapter_name, at_start=at_start, state_dict=state_dict, save_embedding_layers=save_embedding_layers
    )
    folder = Path(folder)
    if _writes(made):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(made.state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        made.config.save_pretrained(str(folder), auto_mapping_dict=_name_base(made, model, adapter_name))
    return folder


def _name_base(made: Portable, model: nn.Module, adapter_name: str) -> dict[str, str] | None:
    """Tells the config where the base came from; for a config without a task the class that loads it, as PEFT does."""
    host = model if not isinstance(made.config, LoraConfig) else host_of(model, adapter_name).module
    base = host.get_base_model() if isinstance(host, PeftModel) else host
    if not made.config.base_model_name_or_path:
        made.config.base_model_name_or_path = base.__dict__.get("name_or_path") or None
    if made.config.task_type is not None:
        return None
    return {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}


def save_diffusers_lora(
    component: nn.Module,
    folder: str | Path,
    *,
    adapter_name: str = "default",
    at_start: Mapping[str, Tensor] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    prefix: str = "unet",
) -> Path:
    """Writes ``pytorch_lora_weights.safetensors``, which ``pipeline.load_lora_weights`` reads, α included; its path.

    ``component`` is the pipeline's module that carries the adapter (by ``add_adapter`` or ``get_peft_model``),
    ``prefix`` its name there ("unet", "transformer", "text_encoder"). α, rank and alpha patterns go into the file's
    metadata, as diffusers (≥ 0.34) reads them. The other arguments and errors as in ``save_adapter``; ValueError too
    for what ``load_lora_weights`` refuses: biases and whole modules.
    """
    made = portable_adapter(component, adapter_name, at_start=at_start, state_dict=state_dict)
    extra = [key for key in made.state if ".lora_" not in key]
    if extra:
        raise ValueError(
            f"{extra[0]}: given a tensor that is no LoRA factor (bias, modules_to_save), which load_lora_weights "
            "refuses; required factors alone, or save_adapter"
        )
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in made.config.to_dict().items()}
    packed = {f"{prefix}.{key}": value for key, value in plain.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(packed, indent=2, sort_keys=True)}
    folder = Path(folder)
    path = folder / "pytorch_lora_weights.safetensors"
    if _writes(made):
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{prefix}.{key.removeprefix(PREFIX)}": tensor for key, tensor in made.state.items()}
        save_file(tensors, path, metadata=metadata)
    return path


def _writes(made: Portable) -> bool:
    """Whether this process writes: every one that was asked to, but of those that gathered shards only the first."""
    return not made.gathered or torch.distributed.get_rank() == 0

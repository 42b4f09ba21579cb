"""Spec → a diffusion pipeline, its UNet with an adapter whose start is proved; the encoders that compare pictures."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from nora import streams
from nora.adapters import (
    InitReport,
    factors_at_start,
    inits,
    save_diffusers_lora,
    snapshot_weights,
)
from nora.config.pins import PIPELINE_FILES, check_files, check_model_files, fetched_folder
from nora.config.schema import MethodSpec, ModelSpec
from nora.errors import RunFailed
from nora.files import Json
from nora.kinds.parts import bases
from nora.training.diffusion.pictures import ClipEncoder, DinoEncoder, Encoder

if TYPE_CHECKING:
    from nora.kinds.dreambooth import EncoderSpec

diffusers_logging.disable_progress_bar()
_LOG = logging.getLogger(__name__)
_RANDOM_WEIGHTS_SEED = 0  # every run over random weights shares one pipeline


Pipeline = Any
"""A StableDiffusionPipeline, or a part of one: diffusers' own types say little of what they hold."""
# Stable Diffusion's own schedule; steps_offset and clip_sample as its repository sets them.
SCHEDULER: dict[str, Json] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "clip_sample": False, "prediction_type": "epsilon",
}  # fmt: skip


def make_vae(shape: Mapping[str, Json], *, seed: int) -> Pipeline:
    """A VAE of this shape with seeded random weights."""
    with streams.seeded(seed, "weights vae"):
        return AutoencoderKL(**shape)


def make_unet(shape: Mapping[str, Json], *, seed: int) -> Pipeline:
    """A UNet of this shape with seeded random weights."""
    with streams.seeded(seed, "weights unet"):
        return UNet2DConditionModel(**shape)


def make_text_encoder(shape: Mapping[str, Json], *, seed: int) -> Pipeline:
    """A CLIP text encoder of this shape with seeded random weights."""
    with streams.seeded(seed, "weights text"):
        return CLIPTextModel(CLIPTextConfig(**shape))


def make_scheduler() -> Pipeline:
    """Stable Diffusion's noise schedule."""
    return DDPMScheduler(**SCHEDULER)


def load_pipeline(spec: ModelSpec, checkout: Path, device: torch.device) -> Pipeline:
    """The StableDiffusionPipeline of a spec, frozen, without a safety checker, its scheduler the training one.

    RunFailed where it does not predict noise.
    """
    from diffusers import StableDiffusionPipeline

    dtype = getattr(torch, spec.dtype)
    plain: dict[str, Json] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if spec.weights == "random":
        pipeline = _random_pipeline(spec, checkout, plain)
    else:
        if spec.source == "asset":
            folder = checkout / str(spec.repo)
            check_model_files(folder, spec.files or {}, checkout)
        else:
            folder = fetched_folder(str(spec.repo), str(spec.revision), spec.files or PIPELINE_FILES)
            check_files(folder, spec.files or {})
        pipeline = StableDiffusionPipeline.from_pretrained(folder, **plain)
        pipeline.scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    kind = pipeline.scheduler.config["prediction_type"]
    if kind != "epsilon":
        raise RunFailed(f"model {spec.name}: predicts {kind!r}, required 'epsilon' (the loss is that of the noise)")
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        nn.Module.to(model, device, dtype)  # diffusers' own would warn of every cast
        model.requires_grad_(False).eval()
    return pipeline


def _random_pipeline(spec: ModelSpec, checkout: Path, plain: dict[str, Json]) -> Pipeline:
    """The true shape without a download; token ids come from a borrowed tokenizer."""
    from diffusers import StableDiffusionPipeline

    shape = spec.architecture or {}
    if spec.files:
        check_model_files(checkout / str(spec.tokenizer), spec.files, checkout)
    return StableDiffusionPipeline(
        vae=make_vae(shape["vae"], seed=_RANDOM_WEIGHTS_SEED),
        unet=make_unet(shape["unet"], seed=_RANDOM_WEIGHTS_SEED),
        text_encoder=make_text_encoder(shape["text_encoder"], seed=_RANDOM_WEIGHTS_SEED),
        tokenizer=CLIPTokenizer.from_pretrained(checkout / str(spec.tokenizer)),
        scheduler=make_scheduler(),
        **plain,
    )


def probe_inputs(pipeline: Pipeline, text: Tensor, resolution: int) -> dict[str, Tensor]:
    """One forward pass of the UNet, on noise."""
    unet = pipeline.unet
    side = resolution // pipeline.vae_scale_factor
    noise = torch.randn(1, unet.config.in_channels, side, side, generator=streams.generator(0, "probe"))
    return {
        "sample": noise.to(unet.device, unet.dtype),
        "timestep": torch.tensor([500], device=unet.device),
        "encoder_hidden_states": text,
    }


@torch.no_grad()
def embed(pipeline: Pipeline, prompt: str, *, max_length: int) -> Tensor:
    """The prompt's hidden states [1, length, width], padded as Stable Diffusion does; a cut prompt is told."""
    tokenizer = pipeline.tokenizer
    length = min(max_length, tokenizer.model_max_length)
    if len(tokenizer(prompt).input_ids) > length:
        _LOG.warning("prompt %r: longer than %d tokens, its end is cut off", prompt, length)
    ids = tokenizer(prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
    hidden: Tensor = pipeline.text_encoder(ids.to(pipeline.text_encoder.device)).last_hidden_state
    return hidden


@dataclass(frozen=True)
class AdaptedUnet:
    """The UNet with its adapter, the proof of its start, and the adapted weights before any adapter touched them."""

    unet: Pipeline
    proof: InitReport
    pretrained: Mapping[str, Tensor]
    at_start: Mapping[str, Tensor] | None
    """The adapter's tensors where the start moved the base (PiSSA, OLoRA): its file needs them."""
    cost: Mapping[str, Json]
    """What the start took."""


def add_adapter(
    unet: Pipeline,
    method: MethodSpec,
    targets: list[str],
    *,
    seed: int,
    probe: Mapping[str, Json],
    rows: bases.TrainingRows | None = None,
) -> AdaptedUnet:
    """Adds the method's LoRA to a UNet, starts it from its own streams and proves the start on ``probe`` inputs.

    Raises RunFailed where a target matches nothing or the proof fails.
    """
    pretrained = snapshot_weights(unet, set(targets))
    bases.check_targets(pretrained, targets, type(unet).__name__)
    with torch.no_grad():
        base_output = unet(**probe).sample
    with streams.seeded(seed, "peft"):  # PEFT draws before our start overwrites it
        unet.add_adapter(bases.lora_config(method, targets))
    proof, cost = bases.started(unet, method, seed, probe, pretrained, base_output, rows, baseline="gaussian")
    if not proof.passed:
        raise RunFailed("the init proof failed: " + "; ".join(proof.problems[:3]))
    moved = bool(inits.load(method.init).MOVES_BASE)
    return AdaptedUnet(unet, proof, pretrained, factors_at_start(unet) if moved else None, cost)


def adapter_bytes(unet: Pipeline, at_start: Mapping[str, Tensor] | None = None) -> bytes:
    """The adapter in the file format of ``load_lora_weights``, for the untouched base."""
    with tempfile.TemporaryDirectory() as folder:
        return with_sorted_header(save_diffusers_lora(unet, folder, at_start=at_start).read_bytes())


def with_sorted_header(data: bytes) -> bytes:
    """The safetensors file with the keys of its header sorted: safetensors writes metadata in an order drawn anew each
    time, and the same adapter must have the same bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    body = header.encode()
    body += b" " * (-len(body) % 8)
    return len(body).to_bytes(8, "little") + body + data[8 + size :]


def load_encoder(spec: EncoderSpec, checkout: Path, device: torch.device) -> Encoder:
    """An encoder of the checkout (hashes checked) or of the Hub by commit."""
    if spec.source == "asset":
        folder = checkout / spec.repo
        check_model_files(folder, spec.files or {}, checkout)
        small: Pipeline = CLIPModel.from_pretrained(folder)
        return ClipEncoder(small.to(device), AutoTokenizer.from_pretrained(folder))
    where: dict[str, Json] = {"revision": spec.revision, "local_files_only": True}
    processor = AutoImageProcessor.from_pretrained(spec.repo, **where)
    model: Pipeline = AutoModel.from_pretrained(spec.repo, **where).to(device)
    if spec.family == "clip":
        return ClipEncoder(model, AutoTokenizer.from_pretrained(spec.repo, **where), processor)
    return DinoEncoder(model, processor)

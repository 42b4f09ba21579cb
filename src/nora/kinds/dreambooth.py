"""``kind=dreambooth``: a LoRA on a diffusion pipeline's UNet from a handful of pictures of one subject."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import torch
from PIL import Image

from nora import streams
from nora.config.pins import load_pictures
from nora.config.schema import DreamboothProtocol, DreamboothSpec
from nora.errors import RunFailed
from nora.kinds import pipelines
from nora.kinds.recipe import (
    Outcome,
    RunContext,
    Update,
    at_boundary,
    diverged,
    epoch_order,
    loop_settings,
    make_preconditioner,
    report_step,
    resume,
    stop_if_asked,
)
from nora.training.diffusion.objective import Draws, LatentCache, NoisePrediction, resize
from nora.training.diffusion.pictures import draw_pictures, strip, to_jpeg
from nora.training.loop import Diverged, LoopSettings, LoopState, make_state, train

_LAST = 100
_SAMPLES = 4  # pictures of a sample on the way


def loss_metrics(losses: list[float]) -> dict[str, Any]:
    """The step losses (eight digits) and their means: over all steps and over the last hundred."""
    rounded = [float(f"{loss:.8g}") for loss in losses]
    last = rounded[-_LAST:]
    return {"mean": sum(rounded) / len(rounded), f"last_{_LAST}": sum(last) / len(last), "steps": rounded}


def training_settings(
    protocol: DreamboothProtocol, num_pictures: int, *, micro_batch_size: int | None = None
) -> LoopSettings:
    """As many epochs over the pictures as the protocol's steps need."""
    return loop_settings(
        protocol,
        epochs=math.ceil(protocol.steps / math.ceil(num_pictures / protocol.batch_size)),
        warmup_steps=protocol.warmup_steps,
        max_steps=protocol.steps,
        micro_batch_size=micro_batch_size,
    )


def make_objective(spec: DreamboothSpec, pipeline: Any, pictures: list[Image.Image]) -> NoisePrediction:
    protocol = spec.protocol
    resized = [resize(picture, protocol.resolution, protocol.interpolation) for picture in pictures]
    return NoisePrediction(
        latents=LatentCache(pipeline.vae, resized, protocol.resolution),
        text=pipelines.embed(pipeline, spec.task.instance_prompt, max_length=spec.model.max_length),
        scheduler=pipeline.scheduler,
        scaling=float(pipeline.vae.config.scaling_factor),
        crop=protocol.crop,
        draws=Draws(spec.seed),
    )


def _probe(objective: NoisePrediction, pipeline: Any) -> dict[str, Any]:
    """One forward pass of the UNet, on noise."""
    unet = pipeline.unet.config
    side = objective.latents.resolution // pipeline.vae_scale_factor
    noise = torch.randn(1, unet.in_channels, side, side, generator=streams.generator(0, "probe"))
    return {
        "sample": noise.to(pipeline.unet.device, pipeline.unet.dtype),
        "timestep": torch.tensor([500], device=pipeline.unet.device),
        "encoder_hidden_states": objective.text,
    }


def execute(spec: DreamboothSpec, context: RunContext) -> Outcome:
    """Trains one run and draws its pictures; returns the losses, the init proof, the pictures and the adapter."""
    started = time.monotonic()
    protocol, device = spec.protocol, context.device
    pictures = load_pictures(spec.task, context.checkout)
    pipeline: Any = pipelines.load_pipeline(spec.model, context.checkout, device)
    objective: Any = make_objective(spec, pipeline, pictures)
    try:
        adapted = pipelines.add_adapter(
            pipeline.unet, spec.method, spec.model.targets, seed=spec.seed, probe=_probe(objective, pipeline)
        )
    except ValueError as error:
        raise RunFailed(str(error)) from None
    settings = training_settings(protocol, len(pictures), micro_batch_size=context.settings.micro_batch_size)
    preconditioner = make_preconditioner(spec.method, adapted.unet)
    state = make_state(adapted.unet, settings, num_examples=len(pictures), preconditioner=preconditioner)
    common: dict[str, Any] = {
        "trainable_parameters": sum(p.numel() for p in state.parameters.values()),
        "pictures": len(pictures),
    }
    resumed = resume(state, context)
    timing: dict[str, Any] = {"setup_seconds": time.monotonic() - started, "resumed_at_step": resumed}

    def draw(seeds: range) -> list[Image.Image]:
        return draw_pictures(
            pipeline, spec.task.prompt, seeds=seeds, steps=protocol.picture_steps, guidance=protocol.guidance,
            side=protocol.resolution // pipeline.vae_scale_factor,
        )  # fmt: skip

    def on_boundary(state: LoopState) -> None:
        every = context.settings.sample_every
        if every is not None and state.step % every == 0:
            sample = draw(range(min(_SAMPLES, protocol.pictures)))
            context.show_picture("sample", to_jpeg(strip(sample)), state.step)
        at_boundary(context, protocol.steps, state)

    training_started = time.monotonic()
    try:
        train(
            adapted.unet,
            objective,
            settings,
            state,
            order=partial(epoch_order, spec.seed, len(pictures)),
            before_step=objective.begin,
            evaluate=None,
            on_step=partial(report_step, context),
            on_boundary=on_boundary,
        )
    except Diverged as error:
        return diverged(error, {**common, "steps": state.step}, adapted.proof.to_dict(), timing)
    timing |= {"train_seconds": time.monotonic() - training_started, "encoded_crops": objective.latents.encoded}
    context.report(Update("pictures", 0, 1, {}))
    stop_if_asked(context, state)
    drawn = draw(range(protocol.pictures))
    metrics = {**common, "steps": state.step, "loss": loss_metrics(state.losses)}
    if "fidelity" in spec.measure:
        from nora.kinds.pipelines import measure_fidelity

        metrics["fidelity"] = measure_fidelity(spec, drawn, pictures, context.checkout, device)
    files: dict[str, tuple[str, str, bytes, bool]] = {
        f"picture_{i:02d}": (f"picture_{i:02d}", ".jpg", to_jpeg(picture), True) for i, picture in enumerate(drawn)
    }
    adapter = pipelines.adapter_bytes(adapted.unet, adapted.at_start)
    files["adapter"] = ("pytorch_lora_weights", ".safetensors", adapter, context.settings.keep_adapter)
    timing["seconds"] = time.monotonic() - started
    return Outcome(metrics=metrics, proof=adapted.proof.to_dict(), files=files, run=timing)

"""Pictures from a pipeline: the same start for the same seed, whatever method trained the UNet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor

from nora import streams

MAX_BYTES = 60_000
_QUALITIES = (95, 90, 85, 80, 70, 60, 50, 40, 25, 10)


def start_latents(pipeline: Any, seeds: Sequence[int], side: int) -> Tensor:
    """The noise each picture starts from [n, channels, side, side]: one stream per seed, drawn on the CPU."""
    shape = (pipeline.unet.config.in_channels, side, side)
    return torch.stack([torch.randn(shape, generator=streams.generator(seed, "picture")) for seed in seeds])


@torch.no_grad()
def draw_pictures(
    pipeline: Any, prompt: str, *, seeds: Sequence[int], steps: int, guidance: float, side: int
) -> list[Image.Image]:
    """One picture per seed by DPM-Solver++ (second order, no noise on the way), latents of ``side``; the pipeline is
    left as it was."""
    scheduler, training = pipeline.scheduler, pipeline.unet.training
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)
    pipeline.unet.eval()
    pipeline.set_progress_bar_config(disable=True)
    latents = start_latents(pipeline, seeds, side).to(pipeline.unet.device, pipeline.unet.dtype)
    try:
        images: list[Image.Image] = pipeline(
            [prompt] * len(seeds), num_inference_steps=steps, guidance_scale=guidance, latents=latents
        ).images
    finally:
        pipeline.scheduler = scheduler
        pipeline.unet.train(training)
    return images


def strip(images: Sequence[Image.Image]) -> Image.Image:
    """The pictures side by side."""
    wide = Image.new("RGB", (sum(i.width for i in images), images[0].height))
    left = 0
    for image in images:
        wide.paste(image, (left, 0))
        left += image.width
    return wide


def to_jpeg(image: Image.Image) -> bytes:
    """JPEG without colour subsampling, of the highest quality that fits into 60 kB (else of the lowest)."""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()

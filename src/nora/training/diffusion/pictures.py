"""Pictures from a pipeline, the same start for the same seed, and how near they are to the subject and the prompt."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nora import streams
from nora.adapters import evaluating
from nora.training.diffusion.objective import to_tensor

MAX_BYTES = 60_000
_QUALITIES = (95, 90, 85, 80, 70, 60, 50, 40, 25, 10)


def start_latents(pipeline: Any, seeds: Sequence[int], side: int) -> Tensor:
    """The noise each picture starts from [n, channels, side, side]: one stream per seed, drawn on the CPU."""
    shape = (pipeline.unet.config.in_channels, side, side)
    return torch.stack([torch.randn(shape, generator=streams.generator(seed, "picture")) for seed in seeds])


@torch.no_grad()
def draw_pictures(
    pipeline: Any,
    prompt: str,
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    side: int,
    between: Callable[[int, int], None] = lambda done, total: None,
) -> list[Image.Image]:
    """One picture per seed by DPM-Solver++ (second order, no noise on the way), latents of ``side``; the pipeline is
    left as it was. ``between`` is called after every step with the steps that are done and all."""

    def after(own: Any, step: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        between(step + 1, steps)
        return tensors

    scheduler = pipeline.scheduler
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    latents = start_latents(pipeline, seeds, side).to(pipeline.unet.device, pipeline.unet.dtype)
    try:
        with evaluating(pipeline.unet):
            images: list[Image.Image] = pipeline(
                [prompt] * len(seeds), num_inference_steps=steps, guidance_scale=guidance, latents=latents,
                callback_on_step_end=after,
            ).images  # fmt: skip
    finally:
        pipeline.scheduler = scheduler
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


class Encoder(Protocol):
    """Unit features [n, width] of pictures and, where it reads text, of texts."""

    def pictures(self, images: Sequence[Image.Image]) -> Tensor: ...

    def texts(self, texts: Sequence[str]) -> Tensor | None: ...


def square(image: Image.Image, side: int) -> Image.Image:
    """The largest middle square at ``side``."""
    edge = min(image.size)
    left, top = ((length - edge) // 2 for length in image.size)
    # Cut first: resizing a box reads a little beyond its edges.
    return image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BICUBIC)


class ClipEncoder:
    """A CLIP; ``processor`` None means pictures in [-1, 1] at the model's size, as this project's own was trained."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any = None) -> None:
        self._model, self._tokenizer, self._processor = model.eval(), tokenizer, processor

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        if self._processor is not None:
            pixels: Tensor = self._processor(images=list(images), return_tensors="pt").pixel_values
            return pixels
        side = self._model.config.vision_config.image_size
        return torch.stack([to_tensor(square(image, side)) for image in images])

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        hidden = self._model.vision_model(pixel_values=self._pixels(images).to(self._model.device)).pooler_output
        return F.normalize(self._model.visual_projection(hidden), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        length = self._model.config.text_config.max_position_embeddings
        ids = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        hidden = self._model.text_model(input_ids=ids.to(self._model.device)).pooler_output
        return F.normalize(self._model.text_projection(hidden), dim=-1)


class DinoEncoder:
    """A self-supervised vision transformer; the feature is that of its class token."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model.eval(), processor

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self._processor(images=list(images), return_tensors="pt").pixel_values.to(self._model.device)
        return F.normalize(self._model(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)

    def texts(self, texts: Sequence[str]) -> None:
        del texts


def drift(
    encoder: Encoder, before: Sequence[Image.Image], after: Sequence[Image.Image], real: Sequence[Image.Image]
) -> dict[str, float]:
    """What training on a subject changed of the pictures of its kind, a prompt that does not name it: mean cosines of
    the two pictures from one noise (``kept``; 1: nothing changed), and of the subject's own pictures with those before
    and after it (``subject_before``, ``subject_after``: the PRES of DreamBooth, arXiv 2208.12242; where it
    rises, the subject stands for its kind)."""
    old, new, theirs = encoder.pictures(before), encoder.pictures(after), encoder.pictures(real)
    found = {"kept": (old * new).sum(dim=-1), "subject_before": old @ theirs.T, "subject_after": new @ theirs.T}
    return {key: float(f"{float(value.mean()):.6g}") for key, value in found.items()}


def fidelity(
    encoder: Encoder, drawn: Sequence[Image.Image], real: Sequence[Image.Image], prompt: str
) -> dict[str, float]:
    """Mean cosines: drawn × real (``subject``), pairs of different real pictures (``ceiling``, needs two), and, for
    an encoder that reads text, drawn × prompt (``prompt``) and real × prompt (``prompt_of_real``)."""
    ours, theirs = encoder.pictures(drawn), encoder.pictures(real)
    found = {"subject": float((ours @ theirs.T).mean())}
    if len(real) > 1:
        between = theirs @ theirs.T
        found["ceiling"] = float((between.sum() - between.diagonal().sum()) / (len(real) * (len(real) - 1)))
    words = encoder.texts([prompt])
    if words is not None:
        found |= {"prompt": float((ours @ words.T).mean()), "prompt_of_real": float((theirs @ words.T).mean())}
    return {key: float(f"{value:.6g}") for key, value in found.items()}

"""Pretraining of a small Stable-Diffusion-shaped pipeline: VAE, then UNet with its text encoder, and a small CLIP."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nora import streams

# Stable Diffusion's own schedule; steps_offset and clip_sample as its repository sets them.
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "clip_sample": False, "prediction_type": "epsilon",
}  # fmt: skip
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # how CLIP splits a text
_KL_WEIGHT = 4e-6
OnStep = Callable[[str, int, int, float], None]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimisation: AdamW, warm-up then cosine to a twentieth."""

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 50
    crop: int | None = None
    """Side of the square that is cut out of a batch's pictures; None: they are taken whole."""


@dataclass(frozen=True)
class Pictures:
    """Captioned pictures: ``pixels`` uint8 [n, 3, side, side]."""

    pixels: Tensor
    captions: Sequence[str]


def train_tokenizer(captions: Iterable[str], *, length: int) -> Any:
    """A CLIP tokenizer whose merges make every word of the captions one token."""
    words = sorted({word for caption in captions for word in re.findall(r"\w+", caption.lower().replace("_", " "))})
    byte_pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    byte_pairs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=4096, end_of_word_suffix="</w>", show_progress=False, min_frequency=1)
    byte_pairs.train_from_iterator([f"{word} {word}" for word in words], trainer)
    learnt = json.loads(byte_pairs.to_str())["model"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = [*letters, *(letter + "</w>" for letter in letters)]
    merges = [tuple(merge) for merge in learnt["merges"]]
    vocab += [one + other for one, other in merges if one + other not in set(vocab)]
    vocab += [_START, _END]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=length)  # type: ignore[arg-type]  # pairs are right


def token_ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """[n, length], padded with the end token as Stable Diffusion does."""
    encoded = tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )  # fmt: skip
    ids: Tensor = encoded.input_ids
    return ids


def _seeded(seed: int, stream: str, make: Callable[[], Any]) -> Any:
    """A model with seeded random weights; torch's global generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.stream_seed(seed, stream))
        return make()


def make_vae(shape: Mapping[str, Any], *, seed: int) -> Any:
    return _seeded(seed, "weights vae", lambda: AutoencoderKL(**shape))


def make_unet(shape: Mapping[str, Any], *, seed: int) -> Any:
    return _seeded(seed, "weights unet", lambda: UNet2DConditionModel(**shape))


def make_text_encoder(shape: Mapping[str, Any], *, seed: int) -> Any:
    return _seeded(seed, "weights text", lambda: CLIPTextModel(CLIPTextConfig(**shape)))


def make_scheduler() -> Any:
    return DDPMScheduler(**SCHEDULER)


def _optimise(
    name: str, parameters: Sequence[nn.Parameter], phase: Phase, loss_of: Callable[[int], Tensor], on_step: OnStep,
    after: Callable[[int], None] = lambda step: None,
) -> float:  # fmt: skip
    """Runs one phase; the mean loss of its last fifty steps. FloatingPointError where it is not finite."""
    optimizer = torch.optim.AdamW(parameters, lr=phase.lr, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        if step < phase.warmup_steps:
            return (step + 1) / phase.warmup_steps
        progress = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
        return 0.05 + 0.475 * (1 + math.cos(math.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    for step in range(phase.steps):
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"pretraining, {name}: the loss of step {step} is {losses[-1]}")
        after(step)
        on_step(name, step, phase.steps, losses[-1])
    recent = losses[-50:]
    return sum(recent) / len(recent)


def _batches(count: int, batch_size: int, draw: torch.Generator) -> Callable[[], Tensor]:
    """Indices of the next batch, epoch after epoch in a drawn order."""
    waiting = torch.empty(0, dtype=torch.long)

    def following() -> Tensor:
        nonlocal waiting
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=draw)])
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        return batch

    return following


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 → [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def _cut(pixels: Tensor, side: int | None, draw: torch.Generator) -> Tensor:
    """The same drawn square of every picture [n, 3, side, side]."""
    if side is None:
        return pixels
    top, left = (int(torch.randint(length - side + 1, (), generator=draw)) for length in pixels.shape[2:])
    return pixels[:, :, top : top + side, left : left + side]


def train_vae(vae: Any, pictures: Pictures, phase: Phase, *, seed: int, on_step: OnStep) -> float:
    """Reconstruction (absolute and squared) with a small KL term; returns the loss and sets the scaling factor.

    Cut squares cost a share of the whole picture and teach a convolutional autoencoder as much per pixel.
    """
    draw = streams.generator(seed, "vae")
    following = _batches(len(pictures.pixels), phase.batch_size, draw)
    vae.train()
    vae.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        del step
        pixels = to_unit(_cut(pictures.pixels[following()], phase.crop, draw))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=draw)
        difference = vae.decode(posterior.mean + posterior.std * noise).sample - pixels
        return difference.abs().mean() + difference.square().mean() + _KL_WEIGHT * posterior.kl().mean()

    loss = _optimise("vae", list(vae.parameters()), phase, loss_of, on_step)
    vae.eval()
    mean, std = encode_all(vae, pictures.pixels[:1000])
    vae.register_to_config(scaling_factor=round(1 / float((mean.square().mean() - mean.mean() ** 2).sqrt()), 5))
    return loss


@torch.no_grad()
def encode_all(vae: Any, pixels: Tensor, *, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every picture's latents, unscaled."""
    means, stds = [], []
    for start in range(0, len(pixels), batch_size):
        posterior = vae.encode(to_unit(pixels[start : start + batch_size])).latent_dist
        means.append(posterior.mean.float())
        stds.append(posterior.std.float())
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def reconstruction_error(vae: Any, pixels: Tensor) -> float:
    """Mean absolute difference per channel, in [-1, 1], between pictures and what their mean latents decode to."""
    whole = to_unit(pixels)
    rebuilt = vae.decode(vae.encode(whole).latent_dist.mean).sample
    return float((rebuilt - whole).abs().mean())


def train_denoiser(
    unet: Any, text: Any, latents: tuple[Tensor, Tensor], ids: Tensor, empty: Tensor,
    phase: Phase, *, seed: int, drop: float, ema: float, on_step: OnStep,
) -> float:  # fmt: skip
    """Noise prediction on scaled latents (mean, std), the text encoder trained along; the weights end as their moving
    average. ``drop`` of the captions are replaced by ``empty``, for guidance."""
    draw = streams.generator(seed, "denoiser")
    scheduler = make_scheduler()
    following = _batches(len(ids), phase.batch_size, draw)
    parameters = [*unet.parameters(), *text.parameters()]
    average = [p.detach().clone() for p in parameters]
    mean, std = latents
    unet.train()
    unet.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        del step
        batch = following()
        size = len(batch)
        clean = mean[batch] + std[batch] * torch.randn(mean[batch].shape, generator=draw)
        noise = torch.randn(clean.shape, generator=draw)
        times = torch.randint(SCHEDULER["num_train_timesteps"], (size,), generator=draw)
        caption = torch.where(torch.rand(size, 1, generator=draw) < drop, empty, ids[batch])
        noisy = scheduler.add_noise(clean, noise, times).contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, times, text(caption).last_hidden_state).sample
        return F.mse_loss(predicted, noise)

    def after(step: int) -> None:
        decay = min(ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)

    loss = _optimise("denoiser", parameters, phase, loss_of, on_step, after)
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)
    unet.eval()
    return loss


def train_clip(
    shape: Mapping[str, Any], pictures: Pictures, ids: Tensor, phase: Phase, *, seed: int, on_step: OnStep
) -> tuple[Any, float]:
    """A small CLIP on the same pictures: which caption belongs to which picture of a batch."""
    model = _seeded(
        seed, "weights clip", lambda: CLIPModel(CLIPConfig(**shape)),
    )  # fmt: skip
    draw = streams.generator(seed, "clip")
    following = _batches(len(ids), phase.batch_size, draw)
    model.train()

    def loss_of(step: int) -> Tensor:
        del step
        batch = following()
        pixels = to_unit(pictures.pixels[batch])
        loss: Tensor = model(input_ids=ids[batch], pixel_values=pixels, return_loss=True).loss
        return loss

    loss = _optimise("clip", list(model.parameters()), phase, loss_of, on_step)
    return model.eval(), loss

"""Drawn scenes and photographs → a small pipeline in diffusers' layout, with its card: VAE, then UNet with its text
encoder, and a small CLIP."""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageOps
from rich.console import Console
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from make_base.loop import optimise
from make_base.scenes import Dice, caption, draw_at_random, draw_scene
from nora import streams
from nora.execution import provenance
from nora.files import sha256_file, write_atomic
from nora.kinds.parts.pipelines import SCHEDULER, make_scheduler, make_text_encoder, make_unet, make_vae
from nora.training.diffusion.pictures import draw_pictures, strip

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


def _optimise(
    name: str, model: nn.Module, phase: Phase, loss_of: Callable[[int], Tensor], on_step: OnStep,
    after: Callable[[int], None] = lambda step: None,
) -> float:  # fmt: skip
    """Runs one phase; the mean loss of its last fifty steps."""
    losses = optimise(
        name, model, loss_of, steps=phase.steps, lr=phase.lr, warmup_steps=phase.warmup_steps, floor=0.05,
        betas=(0.9, 0.98), weight_decay=0.01, max_grad_norm=1.0, after=after,
        on_step=lambda step, loss: on_step(name, step, phase.steps, loss),
    )  # fmt: skip
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

    loss = _optimise("vae", vae, phase, loss_of, on_step)
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

    loss = _optimise("denoiser", nn.ModuleList([unet, text]), phase, loss_of, on_step, after)
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)
    unet.eval()
    return loss


def train_clip(
    shape: Mapping[str, Any], pictures: Pictures, ids: Tensor, phase: Phase, *, seed: int, on_step: OnStep
) -> tuple[Any, float]:
    """A small CLIP on the same pictures: which caption belongs to which picture of a batch."""
    with streams.seeded(seed, "weights clip"):
        model = CLIPModel(CLIPConfig(**shape))
    draw = streams.generator(seed, "clip")
    following = _batches(len(ids), phase.batch_size, draw)
    model.train()

    def loss_of(step: int) -> Tensor:
        del step
        batch = following()
        pixels = to_unit(pictures.pixels[batch])
        loss: Tensor = model(input_ids=ids[batch], pixel_values=pixels, return_loss=True).loss
        return loss

    loss = _optimise("clip", model, phase, loss_of, on_step)
    return model.eval(), loss


THREADS = 1  # one thread: the same seed then gives the same bytes on a machine of the same type
PROMPTS = (
    "a photo of a dog", "a dog eating nachos", "a photo of a cat on the grass", "a toy duck wearing glasses",
    "a yellow duck on the beach", "a blue robot in the snow", "a red toy monster", "a bear wearing a hat",
)  # fmt: skip


def pixels_of(image: Image.Image) -> torch.Tensor:
    """uint8 [3, height, width]."""
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(image.height, image.width, 3)
        .permute(2, 0, 1)
    )


def drawn_crop(image: Image.Image, side: int, dice: Dice) -> Image.Image:
    """A square part of the picture (at least 0.7 of its shorter side), maybe mirrored, at ``side``."""
    edge = round(min(image.size) * dice.uniform(0.7, 1.0))
    left, top = (round(dice.uniform(0, length - edge)) for length in image.size)
    cut = image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + edge, top + edge))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if dice.chance(0.5) else cut


def training_pictures(recipe: dict[str, Any], checkout: Path) -> tuple[Pictures, list[Path]]:
    """Scenes and crops of the photographs with their captions, and the photographs' files."""
    seed, side = recipe["settings"]["seed"], recipe["resolution"]
    dice = Dice(streams.generator(seed, "scenes"))
    pixels, captions = [], []
    for _ in range(recipe["num_scenes"]):
        scene = draw_at_random(dice)
        pixels.append(pixels_of(draw_scene(scene, dice, side=side)))
        captions.append(caption(scene, dice))
    files = [
        (path, what)
        for folder, what in recipe["photos"].items()
        for path in sorted((checkout / "data" / "dreambooth" / folder).glob("*.jpg"))
    ]
    photos = [(Image.open(path).convert("RGB"), what) for path, what in files]
    for i in range(recipe["photo_crops"]):
        image, what = photos[i % len(photos)]
        pixels.append(pixels_of(drawn_crop(image, side, dice)))
        captions.append(f"{dice.one_of(('a photo of a', 'a photo of', 'a'))} {what}")
    return Pictures(torch.stack(pixels), captions), [path for path, _ in files]


def make_pipeline(name: str, recipe: dict[str, Any], *, checkout: Path, out: Path | None) -> int:
    """Pretrains the recipe and writes assets/NAME with its card; returns the exit code."""
    from diffusers import StableDiffusionPipeline

    console = Console(stderr=True)
    diffusers_logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    settings = recipe["settings"]
    seed, shapes = settings["seed"], settings["architecture"]
    pictures, photo_files = training_pictures(recipe, checkout)
    tokenizer = train_tokenizer(pictures.captions, length=settings["length"])
    ids = token_ids(tokenizer, pictures.captions)
    words = {
        "vocab_size": len(tokenizer), "max_position_embeddings": settings["length"],
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    digest = hashlib.sha256(pictures.pixels.numpy().tobytes() + "\n".join(pictures.captions).encode()).hexdigest()
    console.print(f"{name}: {len(ids)} pictures, {len(set(pictures.captions))} captions, {len(tokenizer)} tokens")
    losses: dict[str, float] = {}
    seconds: dict[str, int] = {}
    began = time.monotonic()

    def on_step(phase: str, step: int, steps: int, loss: float) -> None:
        if (step + 1) % 50 == 0:
            console.print(f"{phase} {step + 1}/{steps}  loss {loss:.4f}  {time.monotonic() - began:.0f} s")

    vae = make_vae(shapes["vae"], seed=seed)
    losses["vae"] = train_vae(vae, pictures, Phase(**settings["vae"]), seed=seed, on_step=on_step)
    seconds["vae"] = round(time.monotonic() - began)
    photographs = torch.stack(
        [pixels_of(ImageOps.fit(Image.open(path).convert("RGB"), (recipe["resolution"],) * 2)) for path in photo_files]
    )
    errors = {
        "scenes": reconstruction_error(vae, pictures.pixels[:100]),
        "photographs": reconstruction_error(vae, photographs),
    }
    mean, std = encode_all(vae, pictures.pixels)
    scale = vae.config.scaling_factor
    unet = make_unet(shapes["unet"], seed=seed)
    text = make_text_encoder({**shapes["text_encoder"], **words}, seed=seed)
    losses["denoiser"] = train_denoiser(
        unet, text, (mean * scale, std * scale), ids, token_ids(tokenizer, [""]), Phase(**settings["denoiser"]),
        seed=seed, drop=settings["drop"], ema=settings["ema"], on_step=on_step,
    )  # fmt: skip
    seconds["denoiser"] = round(time.monotonic() - began) - sum(seconds.values())
    clip_shape = {
        "projection_dim": shapes["clip"]["projection_dim"],
        "text_config": {**shapes["clip"]["text"], **words},
        "vision_config": {**shapes["clip"]["vision"], "image_size": recipe["resolution"]},
    }
    clip, losses["clip"] = train_clip(clip_shape, pictures, ids, Phase(**settings["clip"]), seed=seed, on_step=on_step)
    seconds["clip"] = round(time.monotonic() - began) - sum(seconds.values())

    folder = out or checkout / "assets" / name
    folder.mkdir(parents=True, exist_ok=True)
    pipeline: Any = StableDiffusionPipeline(
        vae=vae.to(memory_format=torch.contiguous_format), text_encoder=text.eval(), tokenizer=tokenizer,
        unet=unet.to(memory_format=torch.contiguous_format), scheduler=make_scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    drawn = [
        image
        for prompt in PROMPTS
        for image in draw_pictures(
            pipeline, prompt, seeds=[0, 1, 2, 3], steps=25, guidance=4.0, side=unet.config.sample_size
        )
    ]
    rows = [strip(drawn[i : i + 8]) for i in range(0, len(drawn), 8)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for i, row in enumerate(rows):
        sheet.paste(row, (0, i * row.height))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=90)
    write_atomic(folder / "samples.jpg", buffer.getvalue())
    shipped = sorted(
        p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and p.name != "pretraining.json"
    )
    facts = {
        "parameters": {
            part: sum(p.numel() for p in model.parameters())
            for part, model in (("unet", unet), ("vae", vae), ("text_encoder", text), ("clip", clip))
        },
        "pictures": {"scenes": recipe["num_scenes"], "photograph crops": recipe["photo_crops"]},
        "different_captions": len(set(pictures.captions)),
        "training_pictures_sha256": digest,
        "samples_seen": {part: settings[part]["steps"] * settings[part]["batch_size"] for part in seconds},
        "final_loss": {part: round(loss, 5) for part, loss in losses.items()},
        "seconds": seconds,
        "reconstruction_error": {of: round(error, 4) for of, error in errors.items()},
        "scaling_factor": scale,
        "seed": seed,
        "threads": THREADS,
        "files": {str(p.relative_to(folder)): sha256_file(p) for p in shipped},
        "photographs": {str(p.relative_to(checkout)): sha256_file(p) for p in photo_files},
        "libraries": provenance.library_versions(),
        "cpu": provenance.machine("cpu", THREADS)["cpu"],
    }  # fmt: skip
    write_atomic(folder / "pretraining.json", json.dumps(facts, indent=1) + "\n")
    write_atomic(folder / "README.md", card(name, recipe, facts))
    console.print(f"put these into conf/model/{name}.yaml, files: " + json.dumps(facts["files"]))
    return 0


def card(name: str, recipe: dict[str, Any], facts: dict[str, Any]) -> str:
    """The model card."""
    settings = recipe["settings"]
    parts = "\n".join(
        f"| {part} | {facts['parameters'][part]:,} | {facts['samples_seen'][part]:,} | {facts['final_loss'][part]} "
        f"| {facts['seconds'][part]} |"
        for part in ("vae", "denoiser", "clip")
        if part in facts["parameters"]
    )
    seen, loss, took = (facts[key]["denoiser"] for key in ("samples_seen", "final_loss", "seconds"))
    sizes = " + ".join(f"{facts['parameters'][part]:,}" for part in ("unet", "text_encoder"))
    unet_row = f"| unet + text_encoder | {sizes} | {seen:,} | {loss} | {took} |"
    prompts = "; ".join(f"“{p}” ×4" for p in PROMPTS)
    return f"""# {name}

A small pipeline shaped like Stable Diffusion 1 (UNet with cross-attention, KL autoencoder, CLIP text encoder and
tokenizer, the same noise schedule), made by `nora pretrain {name}` to rehearse DreamBooth on a laptop. It draws simple
cartoons at {recipe["resolution"]} pixels: six kinds of animals and toys, twelve colours, a few places and things. It is
no model of photographs: of those it has seen {len(facts["photographs"])}, in crops.

![samples](samples.jpg)

{prompts}; seeds 0–3 each, 25 DPM-Solver steps, guidance 4.

| part | parameters | pictures seen | final loss | seconds |
|---|---|---|---|---|
{parts}
{unet_row}

- **Data**: {facts["pictures"]["scenes"]:,} drawn scenes and {facts["pictures"]["photograph crops"]:,} crops of
  photographs, {facts["different_captions"]:,} different captions; pixels and captions sha256
  `{facts["training_pictures_sha256"]}`. In one caption of eight the kind carries a letter as its name ("v_dog").
- **Losses**: vae = absolute + squared error per channel in [-1, 1] + {_KL_WEIGHT:g} KL; unet = noise
  prediction, mean squared error, with {settings["drop"]:.0%} of the captions left out; clip = cross-entropy over the
  captions of a batch of {settings["clip"]["batch_size"]}.
- The autoencoder's mean absolute error per channel in [-1, 1]: {facts["reconstruction_error"]["scenes"]} on scenes,
  {facts["reconstruction_error"]["photographs"]} on the photographs.
- AdamW, seed {facts["seed"]}, {facts["threads"]} thread on a {facts["cpu"]}; the UNet and its text
  encoder are a moving average (decay {settings["ema"]}) of the last steps. Latents are {recipe["resolution"] // 4} ×
  {recipe["resolution"] // 4} × 4, scaling factor {facts["scaling_factor"]}.
- `clip/` is a small CLIP trained on the same pictures: a stand-in for the encoders that subject fidelity is measured
  with at the paper's scale. It has never seen the subjects either.
- Recipe `conf/pretrain/{name}.yaml`; all facts in `pretraining.json`.

## What it cannot do

{recipe["limits"]}
## Sources

{recipe["sources"]}"""

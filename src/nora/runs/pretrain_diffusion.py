"""``nora pretrain sd_mini``: drawn scenes and photographs → a small pipeline in diffusers' layout, with its card."""

from __future__ import annotations

import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageOps
from rich.console import Console

from nora import streams
from nora.runs import provenance
from nora.runs.files import sha256_file, write_atomic
from nora.training.diffusion import pretrain as phases
from nora.training.diffusion.pictures import draw_pictures, strip
from nora.training.diffusion.pretrain import Phase, Pictures
from nora.training.diffusion.scenes import Dice, caption, draw_at_random, draw_scene

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
    tokenizer = phases.train_tokenizer(pictures.captions, length=settings["length"])
    ids = phases.token_ids(tokenizer, pictures.captions)
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

    vae = phases.make_vae(shapes["vae"], seed=seed)
    losses["vae"] = phases.train_vae(vae, pictures, Phase(**settings["vae"]), seed=seed, on_step=on_step)
    seconds["vae"] = round(time.monotonic() - began)
    photographs = torch.stack(
        [pixels_of(ImageOps.fit(Image.open(path).convert("RGB"), (recipe["resolution"],) * 2)) for path in photo_files]
    )
    errors = {
        "scenes": phases.reconstruction_error(vae, pictures.pixels[:100]),
        "photographs": phases.reconstruction_error(vae, photographs),
    }
    mean, std = phases.encode_all(vae, pictures.pixels)
    scale = vae.config.scaling_factor
    unet = phases.make_unet(shapes["unet"], seed=seed)
    text = phases.make_text_encoder({**shapes["text_encoder"], **words}, seed=seed)
    losses["denoiser"] = phases.train_denoiser(
        unet, text, (mean * scale, std * scale), ids, phases.token_ids(tokenizer, [""]), Phase(**settings["denoiser"]),
        seed=seed, drop=settings["drop"], ema=settings["ema"], on_step=on_step,
    )  # fmt: skip
    seconds["denoiser"] = round(time.monotonic() - began) - sum(seconds.values())
    clip_shape = {
        "projection_dim": shapes["clip"]["projection_dim"],
        "text_config": {**shapes["clip"]["text"], **words},
        "vision_config": {**shapes["clip"]["vision"], "image_size": recipe["resolution"]},
    }
    clip, losses["clip"] = phases.train_clip(
        clip_shape, pictures, ids, Phase(**settings["clip"]), seed=seed, on_step=on_step
    )
    seconds["clip"] = round(time.monotonic() - began) - sum(seconds.values())

    folder = out or checkout / "assets" / name
    folder.mkdir(parents=True, exist_ok=True)
    pipeline: Any = StableDiffusionPipeline(
        vae=vae.to(memory_format=torch.contiguous_format), text_encoder=text.eval(), tokenizer=tokenizer,
        unet=unet.to(memory_format=torch.contiguous_format), scheduler=phases.make_scheduler(), safety_checker=None,
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
    sheet.save(buffer, "PNG", optimize=True)
    write_atomic(folder / "samples.png", buffer.getvalue())
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

![samples](samples.png)

{prompts}; seeds 0–3 each, 25 DPM-Solver steps, guidance 4.

| part | parameters | pictures seen | final loss | seconds |
|---|---|---|---|---|
{parts}
{unet_row}

- **Data**: {facts["pictures"]["scenes"]:,} drawn scenes and {facts["pictures"]["photograph crops"]:,} crops of
  photographs, {facts["different_captions"]:,} different captions; pixels and captions sha256
  `{facts["training_pictures_sha256"]}`. In one caption of eight the kind carries a letter as its name ("v_dog").
- **Losses**: vae = absolute + squared error per channel in [-1, 1] + {phases._KL_WEIGHT:g} KL; unet = noise
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

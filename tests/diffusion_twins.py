"""A tiny pipeline of the real classes, and pictures to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from nora.kinds.parts import pipelines

ROOT = Path(__file__).resolve().parents[1]
SHAPE: dict[str, Any] = yaml.safe_load((ROOT / "conf/model/sd_smoke.yaml").read_text())["architecture"]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Seeded RGB noise."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), generator=draw, dtype=torch.uint8)
    return Image.frombytes("RGB", (width, height), pixels.numpy().tobytes())


def tiny_unet(seed: int = 0) -> Any:
    return pipelines.make_unet(SHAPE["unet"], seed=seed).eval().requires_grad_(False)


def tiny_vae(seed: int = 0) -> Any:
    return pipelines.make_vae(SHAPE["vae"], seed=seed).eval().requires_grad_(False)

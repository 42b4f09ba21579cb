"""From a photograph to what the VAE reads: resized, cropped, scaled to [-1, 1]; its latents, encoded once per crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}
Corner = tuple[int, int]
"""Left and top of a crop in the resized picture."""


def resize(image: Image.Image, resolution: int, interpolation: str) -> Image.Image:
    """The picture with its shorter side at ``resolution`` (the longer one rounded down, as torchvision's Resize)."""
    width, height = image.size
    if width <= height:
        size = (resolution, int(resolution * height / width))
    else:
        size = (int(resolution * width / height), resolution)
    return image.resize(size, _FILTERS[interpolation])


def corner(size: tuple[int, int], resolution: int, crop: str, draw: torch.Generator) -> Corner:
    """Where a square of ``resolution`` is cut: drawn, or in the middle."""
    room = [length - resolution for length in size]
    if crop == "center":
        left, top = (round(r / 2) for r in room)
    else:
        left, top = (int(torch.randint(r + 1, (), generator=draw)) for r in room)
    return left, top


def to_tensor(image: Image.Image) -> Tensor:
    """[3, height, width] in [-1, 1]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).to(torch.float32).div(127.5).sub(1.0)


@dataclass
class LatentCache:
    """Mean and standard deviation of each crop's latents [channels, h, w]; the VAE sees a crop once.

    A square picture has a single crop, so that a whole run encodes as many crops as it has pictures.
    """

    vae: Any
    pictures: Sequence[Image.Image]
    """Resized."""
    resolution: int
    _known: dict[tuple[int, Corner], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def encoded(self) -> int:
        return len(self._known)

    @torch.no_grad()
    def moments(self, index: int, at: Corner) -> tuple[Tensor, Tensor]:
        key = (index, at)
        if key not in self._known:
            left, top = at
            cut = self.pictures[index].crop((left, top, left + self.resolution, top + self.resolution))
            pixels = to_tensor(cut)[None].to(self.vae.device, self.vae.dtype)
            posterior = self.vae.encode(pixels).latent_dist
            self._known[key] = posterior.mean[0].float(), posterior.std[0].float()
        return self._known[key]

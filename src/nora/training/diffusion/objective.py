"""DreamBooth's loss as something the loop can minimise: crops, their latents, and the noise that is predicted.

Everything random of a step is drawn from streams named by what it is, the step and the picture. So every method sees
the same crops, VAE samples, noise and timesteps for a seed, and a resumed run sees those of the undisturbed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from nora import streams

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


@dataclass(frozen=True)
class Draws:
    """The randomness of one run's steps, on the CPU."""

    seed: int

    def generator(self, what: str, step: int, picture: int) -> torch.Generator:
        return streams.generator(self.seed, what, f"step {step} picture {picture}")

    def normal(self, what: str, step: int, picture: int, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator(what, step, picture))

    def timestep(self, step: int, picture: int, count: int) -> int:
        """Uniform over 0 … count - 1."""
        return int(torch.randint(count, (), generator=self.generator("timestep", step, picture)))


@dataclass
class NoisePrediction:
    """Mean squared error of the predicted noise over a latent's entries, averaged over the pictures of a batch.

    ``step`` is the step about to be taken; the loop sets it through ``begin``.
    """

    latents: LatentCache
    text: Tensor
    """The instance prompt's hidden states [1, length, width]."""
    scheduler: Any
    """The model's DDPMScheduler."""
    scaling: float
    crop: str
    draws: Draws
    step: int = 0

    @property
    def num_examples(self) -> int:
        return len(self.latents.pictures)

    def begin(self, step: int) -> None:
        self.step = step

    def count(self, indices: Sequence[int]) -> int:
        return len(indices)

    def _clean(self, picture: int) -> Tensor:
        """A sample of the picture's latents, scaled [channels, h, w]."""
        where = self.draws.generator("crop", self.step, picture)
        at = corner(self.latents.pictures[picture].size, self.latents.resolution, self.crop, where)
        mean, std = self.latents.moments(picture, at)
        sample = self.draws.normal("vae", self.step, picture, mean.shape).to(mean.device)
        return (mean + std * sample) * self.scaling

    def loss(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        clean = torch.stack([self._clean(i) for i in indices])
        noise = torch.stack([self.draws.normal("noise", self.step, i, clean.shape[1:]) for i in indices]).to(
            clean.device
        )
        steps = self.scheduler.config["num_train_timesteps"]
        times = torch.tensor([self.draws.timestep(self.step, i, steps) for i in indices], device=clean.device)
        noisy = self.scheduler.add_noise(clean, noise, times)
        predicted = model(noisy, times, self.text.expand(len(indices), -1, -1)).sample
        return F.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3)).sum()

"""DreamBooth's loss as something the loop can minimise: predict the noise on a picture's latents.

Everything random of a step is drawn from streams named by what it is, the step and the picture. So every method sees
the same crops, VAE samples, noise and timesteps for a seed, and a resumed run sees those of the undisturbed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nora import streams
from nora.training.diffusion.crops import LatentCache, corner


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

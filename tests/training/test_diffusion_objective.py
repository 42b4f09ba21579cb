"""The DreamBooth loss against the lines of diffusers' script; crops against what they must be; the draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from diffusion_twins import noise_picture, tiny_unet, tiny_vae
from nora.kinds.parts import pipelines
from nora.training.diffusion.objective import Draws, LatentCache, NoisePrediction, corner, resize, to_tensor
from nora.training.loop import LoopSettings, make_state, train_step

SIDE = 32


def _objective(vae: Any, pictures: list[Image.Image], crop: str = "random") -> NoisePrediction:
    text = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(3))
    return NoisePrediction(LatentCache(vae, pictures, SIDE), text, pipelines.make_scheduler(), 0.5, crop, Draws(7))


def _script_loss(objective: NoisePrediction, unet: Any, vae: Any, picture: int, step: int) -> torch.Tensor:
    """What train_dreambooth_lora.py does for one picture, with the draws handed in."""
    draws = objective.draws
    image = objective.latents.pictures[picture]
    left, top = corner(image.size, SIDE, objective.crop, draws.generator("crop", step, picture))
    pixels = to_tensor(image)[:, top : top + SIDE, left : left + SIDE][None]
    posterior = vae.encode(pixels).latent_dist
    sample = posterior.mean + posterior.std * draws.normal("vae", step, picture, posterior.mean.shape[1:])
    latents = sample * 0.5
    noise = draws.normal("noise", step, picture, latents.shape[1:])[None]
    timesteps = torch.tensor([draws.timestep(step, picture, 1000)])
    noisy = objective.scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noisy, timesteps, objective.text, return_dict=False)[0]
    return F.mse_loss(predicted.float(), noise.float(), reduction="mean")


def test_the_loss_is_the_scripts_on_every_picture_and_step() -> None:
    unet, vae = tiny_unet(), tiny_vae()
    objective = _objective(vae, [noise_picture(32, 32, 1), noise_picture(48, 32, 2), noise_picture(32, 40, 3)])
    seen = set()
    for step in (0, 1, 5):
        objective.begin(step)
        for picture in range(3):
            expected = _script_loss(objective, unet, vae, picture, step)
            found = objective.loss(unet, [picture])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
            seen.add(round(float(found.detach()), 6))
        both = objective.loss(unet, [0, 2]) / objective.count([0, 2])
        mean = (_script_loss(objective, unet, vae, 0, step) + _script_loss(objective, unet, vae, 2, step)) / 2
        torch.testing.assert_close(both, mean, rtol=1e-5, atol=0)
    assert len(seen) == 9, "every step and picture has draws of its own"


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    vae, pictures = tiny_vae(), [noise_picture(32, 32, i) for i in range(4)]
    gradients = []
    for micro in (None, 1):
        unet = tiny_unet()
        bias = unet.conv_out.bias.requires_grad_(True)
        settings = LoopSettings(
            lr=0.0, batch_size=4, epochs=1, schedule="constant", warmup_steps=0, betas=(0.9, 0.999), eps=1e-8,
            weight_decay=0.0, max_grad_norm=None, precision="fp32", micro_batch_size=micro,
        )  # fmt: skip
        state = make_state(unet, settings, num_examples=4, preconditioner=None)
        train_step(unet, _objective(vae, pictures), [2, 0, 3, 1], settings, state)
        gradients.append(bias.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_the_vae_sees_each_crop_once() -> None:
    vae, calls = tiny_vae(), []
    original = vae.encode
    vae.encode = lambda pixels: (calls.append(1), original(pixels))[1]
    square = _objective(vae, [noise_picture(32, 32), noise_picture(32, 32, 1)])
    for step in range(6):
        square.begin(step)
        for i in (0, 1):
            square._clean(i)
    assert len(calls) == square.latents.encoded == 2
    long = _objective(vae, [noise_picture(64, 32)])
    for step in range(6):
        long.begin(step)
        long._clean(0)
    assert 2 < long.latents.encoded == len(calls) - 2 <= 6, "a random crop moves"
    middle = _objective(vae, [noise_picture(64, 32)], crop="center")
    for step in range(6):
        middle.begin(step)
        middle._clean(0)
    assert middle.latents.encoded == 1


@pytest.mark.parametrize("size, expected", [((300, 200), (96, 64)), ((200, 300), (64, 96)), ((64, 64), (64, 64))])
def test_the_shorter_side_is_brought_to_the_resolution(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = noise_picture(*size)
    for interpolation, resample in (("bilinear", Image.Resampling.BILINEAR), ("lanczos", Image.Resampling.LANCZOS)):
        found = resize(image, 64, interpolation)
        assert found.size == expected
        assert found.tobytes() == image.resize(expected, resample).tobytes()


def test_crops_are_in_the_picture_and_use_all_of_it() -> None:
    corners = {corner((40, 32), 32, "random", torch.Generator().manual_seed(i)) for i in range(200)}
    assert corners == {(left, 0) for left in range(9)}
    assert corner((41, 32), 32, "center", torch.Generator()) == (4, 0)


def test_pixels_are_scaled_to_minus_one_and_one() -> None:
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (255, 0, 51))
    torch.testing.assert_close(to_tensor(image), torch.tensor([[[-1.0, 1.0]], [[-1.0, -1.0]], [[-1.0, -0.6]]]))


def test_two_pictures_of_a_step_and_two_steps_of_a_picture_have_draws_of_their_own() -> None:
    shape = torch.Size([4, 8, 8])
    for what in ("noise", "vae"):
        drawn = [Draws(0).normal(what, step, picture, shape) for step in (0, 1) for picture in (0, 1)]
        assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert not torch.equal(Draws(0).normal("noise", 0, 0, shape), Draws(0).normal("vae", 0, 0, shape))


def test_timesteps_are_uniform_over_the_schedule() -> None:
    drawn = [Draws(0).timestep(step, 0, 1000) for step in range(4000)]
    assert min(drawn) < 10 and max(drawn) > 990
    counts = torch.histc(torch.tensor(drawn, dtype=torch.float32), bins=10, min=0, max=1000)
    # chi-square with 9 degrees of freedom: 27.9 at 0.1 %
    assert float(((counts - 400) ** 2 / 400).sum()) < 27.9
    assert {Draws(0).timestep(step, 0, 3) for step in range(50)} == {0, 1, 2}

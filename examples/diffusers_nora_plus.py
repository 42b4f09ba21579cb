"""NoRA+ for the UNet of a Stable Diffusion pipeline with diffusers.

    python examples/diffusers_nora_plus.py MODEL OUTPUT_FOLDER

A bare training loop on batches (latents, noise, timestep, text embedding); plug in your own data as in diffusers'
DreamBooth LoRA script. What NoRA adds to that script is marked.
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig

from nora.adapters import create_nora_plus_optimizer, nystrom_init_, save_diffusers_lora


def train(unet: Any, scheduler: Any, batches: Iterable[Any], output: str, *, lr: float = 1e-4) -> list[float]:
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))

    report = nystrom_init_(unet, xi=0.1, seed=0)  # (1) before the optimiser is made
    if not report.passed:
        raise RuntimeError(report.problems)
    optimizer = create_nora_plus_optimizer(unet, torch.optim.AdamW, lr=lr, max_grad_norm=1.0)  # (2) clips by itself

    losses = []
    for latents, noise, timestep, text in batches:
        noisy = scheduler.add_noise(latents, noise, timestep)
        loss = (unet(noisy, timestep, text).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    save_diffusers_lora(unet, output)  # (3) pipeline.load_lora_weights(output) reads it, alpha included
    return losses


def main(name: str, output: str) -> None:
    unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet")
    scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler")
    width = unet.config.cross_attention_dim
    draw = torch.Generator().manual_seed(0)  # random batches: replace them with encoded images and prompts
    shapes = ((1, 4, 64, 64), (1, 4, 64, 64), (1, 77, width))
    batch = [torch.randn(shape, generator=draw) for shape in shapes]
    print(train(unet, scheduler, [(batch[0], batch[1], torch.tensor([500]), batch[2])] * 3, output))


if __name__ == "__main__":
    main(*sys.argv[1:3])

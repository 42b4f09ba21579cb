"""LoRA+ (arXiv 2402.12354): B is stepped with a larger learning rate than A. PEFT's."""

from __future__ import annotations

from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from torch.optim import Optimizer

OPTIONS = {"lr_ratio": 16.0}


def make(
    model: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, lr_ratio: float
) -> Optimizer:
    """AdamW with ``lr`` for A and ``lr_ratio`` times that for B."""
    made: Optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=lr_ratio, loraplus_weight_decay=weight_decay, betas=betas,
        eps=eps,
    )  # fmt: skip
    return made

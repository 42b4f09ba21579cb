"""Pretraining by the project's one loop (nora.training.loop), with a schedule of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nora.training.loop import Diverged, LoopSettings, LoopState, StepInfo, train, trainable_parameters


@dataclass(frozen=True)
class _Steps:
    """An objective that knows its own batches: its examples are the steps."""

    loss_of: Callable[[int], Tensor]
    num_examples: int

    def count(self, indices: Sequence[int]) -> int:
        return len(indices)

    def loss(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        (step,) = indices
        return self.loss_of(step)


def optimise(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    warmup_steps: int,
    floor: float,
    betas: tuple[float, float],
    weight_decay: float,
    max_grad_norm: float,
    on_step: Callable[[int, float], None],
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """AdamW on ``loss_of(step)``, warm-up then cosine down to ``floor`` of the learning rate; the loss of every step.

    FloatingPointError at the first loss or gradient that is not finite.
    """
    parameters = trainable_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, betas=betas, weight_decay=weight_decay)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return floor + (1 - floor) / 2 * (1 + math.cos(math.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    state = LoopState(parameters, optimizer, schedule, None)
    settings = LoopSettings(
        lr=lr, batch_size=1, epochs=1, schedule="cosine", warmup_steps=warmup_steps, betas=betas, eps=1e-8,
        weight_decay=weight_decay, max_grad_norm=max_grad_norm, precision="fp32", keep_best=False,
    )  # fmt: skip

    def told(info: StepInfo) -> None:
        after(info.step - 1)
        on_step(info.step - 1, info.loss)

    try:
        train(
            model, _Steps(loss_of, steps), settings, state, order=lambda epoch: torch.arange(steps),
            before_step=lambda step: None, evaluate=None, on_step=told, on_boundary=lambda state: None,
        )  # fmt: skip
    except Diverged as error:
        raise FloatingPointError(f"pretraining, {name}: {error}") from None
    return state.losses

"""Pretraining of the small base models that the project ships (``nora pretrain MODEL``)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from nora.streams import generator, stream_seed


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """One pretraining run; lengths in tokens."""

    architecture: dict[str, Any]
    """``model_type`` and the fields of its transformers config."""
    seed: int
    steps: int
    batch_size: int
    length: int
    lr: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    model: PreTrainedModel
    tokens_seen: int
    train_loss: float
    """Mean over the last 50 steps, nats per token."""
    seconds: float


def build_model(architecture: dict[str, Any], *, seed: int) -> PreTrainedModel:
    """A causal language model of the given architecture with seeded random weights."""
    fields = dict(architecture)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        return AutoModelForCausalLM.from_config(config)


def language_model_loss(model: PreTrainedModel, block: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy (nats) over ``block`` [batch, length]."""
    logits = model(input_ids=block).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), block[:, 1:].reshape(-1))


def pretrain(
    settings: PretrainSettings, blocks: torch.Tensor, *, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> PretrainResult:
    """Trains on ``blocks`` [n, length] in seeded epochs: AdamW, warm-up then cosine to a tenth, fp32."""
    model = build_model(settings.architecture, seed=settings.seed)
    model.eval()  # one or two epochs need no dropout; the config keeps the architecture's own for fine-tuning
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    order_stream = generator(settings.seed, "order")
    order = torch.empty(0, dtype=torch.long)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(settings.steps):
        while len(order) < settings.batch_size:
            order = torch.cat([order, torch.randperm(len(blocks), generator=order_stream)])
        batch, order = blocks[order[: settings.batch_size]].long(), order[settings.batch_size :]
        loss = language_model_loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"pretraining: the loss of step {step} is {losses[-1]}")
        on_step(step, losses[-1])
    recent = losses[-50:]
    return PretrainResult(
        model=model,
        tokens_seen=settings.steps * settings.batch_size * settings.length,
        train_loss=sum(recent) / len(recent),
        seconds=time.monotonic() - started,
    )


@torch.no_grad()
def perplexity(model: PreTrainedModel, blocks: torch.Tensor, *, batch_size: int = 8) -> float:
    """exp of the mean next-token loss over held-out ``blocks`` [n, length]."""
    total, count = 0.0, 0
    for start in range(0, len(blocks), batch_size):
        batch = blocks[start : start + batch_size].long()
        total += language_model_loss(model, batch).item() * len(batch)
        count += len(batch)
    return math.exp(total / count)

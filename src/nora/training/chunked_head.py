"""Cross-entropy of a frozen output head without the logits of a whole batch (Gemma's head has 256,000 words).

With hidden states H [t, h] and a head W [v, h] the gradient of token i's loss with respect to its own hidden state is
softmax(W h_i) W − W[target_i], so it can be had chunk by chunk in the forward pass, and only [t, h] is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 2**24  # logits at a time: 64 MiB in float32


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, chunk: int) -> Tensor:
        wanted = torch.promote_types(hidden.dtype, torch.float32)
        losses = hidden.new_empty(len(hidden), dtype=wanted)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).to(wanted)
            losses[part] = torch.nn.functional.cross_entropy(logits, targets[part], reduction="none")
            if slopes is not None:
                excess = torch.softmax(logits, dim=-1)
                excess[torch.arange(len(excess), device=excess.device), targets[part]] -= 1
                slopes[part] = (excess.to(weight.dtype) @ weight).to(hidden.dtype)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (gradients[0][:, None] * slopes).to(slopes.dtype), None, None, None, None


def token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """Negative log-probability [t] (nats, float32 or better) of ``targets`` [t] under a frozen head [v, h].

    ValueError where the head itself is to be trained: its gradient is not computed here.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("given a head that requires gradients, required a frozen one")
    size = chunk or max(1, CHUNK_LOGITS // len(weight))
    losses: Tensor = _TokenLosses.apply(hidden, weight, targets, bias, size)
    return losses

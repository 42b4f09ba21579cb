"""Prefix tuning as the few-shot protocol starts it: keys and values of really processed tokens, positions unmoved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nora import streams
from nora.adapters.initialize import Start
from nora.adapters.proof import TOLERANCE, InitReport
from nora.adapters.surroundings import evaluating


def drawn_tokens(vocab_size: int, count: int, *, seed: int) -> Tensor:
    """``count`` uniformly random vocabulary ids [1, count]."""
    return torch.randint(0, vocab_size, (1, count), generator=streams.generator(seed, "init", "prefix"))


@torch.no_grad()
def token_keys_values(base: nn.Module, tokens: Tensor) -> Tensor:
    """The keys and values [layers, 2, heads, count, head_dim] that ``base`` computes for ``tokens``."""
    with evaluating(base):
        cache = base(input_ids=tokens.to(next(base.parameters()).device), use_cache=True).past_key_values
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])


@torch.no_grad()
def prefix_init_(model: Any, keys_values: Tensor, *, adapter_name: str = "default") -> None:
    """Writes ``keys_values`` [layers, 2, heads, count, head_dim] into a PEFT prefix-tuning model without projection."""
    weight = model.prompt_encoder[adapter_name].embedding.weight
    layers, two, heads, count, dim = keys_values.shape
    flat = keys_values.permute(3, 0, 1, 2, 4).reshape(count, layers * two * heads * dim)
    if flat.shape != weight.shape:
        raise ValueError(f"prefix: given keys and values for {tuple(flat.shape)}, required {tuple(weight.shape)}")
    weight.copy_(flat)


@torch.no_grad()
def prove_prefix(model: Any, base: nn.Module, tokens: Tensor) -> InitReport:
    """Compares the keys and values the forward pass will read with those of the drawn tokens."""
    expected = token_keys_values(base, tokens)
    cache = model.get_prompt(1)
    read = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
    difference = (torch.linalg.norm(read - expected) / torch.linalg.norm(expected)).item()
    problems = (
        ()
        if difference <= TOLERANCE
        else (f"the prefix read differs from the drawn tokens' keys and values by {difference:.2e}",)
    )
    return InitReport(Start("real_activations"), not problems, problems, (), difference)

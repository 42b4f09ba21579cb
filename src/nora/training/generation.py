"""Greedy decoding in batches, under the same explicit positions and masks as training and scoring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel, PrefixTuningConfig
from torch import Tensor, nn
from transformers import DynamicCache


@torch.no_grad()
def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    max_new_tokens: int,
    pad_id: int,
    max_tokens: int = 8192,
    between: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """The most likely continuation of each prompt up to a token of ``stop`` (not included) or ``max_new_tokens``.

    Prompts of like length run together; each continuation equals the one it has alone. The order is kept.
    ``between`` is called before every batch.
    """
    was_training = model.training
    model.eval()
    outcome: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    while order:
        between()
        longest = len(prompts[order[0]]) + max_new_tokens
        batch, order = order[: max(1, max_tokens // longest)], order[max(1, max_tokens // longest) :]
        continued = _greedy_batch(model, [prompts[i] for i in batch], stop, max_new_tokens, pad_id)
        for i, tokens in zip(batch, continued, strict=True):
            outcome[i] = tokens
    model.train(was_training)
    return outcome


def _greedy_batch(
    model: Any, prompts: list[Sequence[int]], stop: Sequence[int], max_new_tokens: int, pad_id: int
) -> list[list[int]]:
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    device = next(base.parameters()).device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    width = int(lengths.max())
    ids = torch.full((len(prompts), width), pad_id, device=device)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt, device=device)
    past: Any = DynamicCache()
    if isinstance(model, PeftModel) and isinstance(model.active_peft_config, PrefixTuningConfig):
        past = model.get_prompt(len(prompts))
    prefix = past.get_seq_length()

    columns = torch.arange(width, device=device)
    real = columns < lengths[:, None]  # [b, width]
    causal = (columns <= columns[:, None]) & real[:, None, :] | torch.eye(width, dtype=torch.bool, device=device)
    mask = torch.cat([causal.new_ones(len(prompts), width, prefix), causal], dim=2)[:, None]
    positions = columns.expand(len(prompts), width)
    hidden = _step(base, ids, positions, mask, past)
    hidden = hidden[torch.arange(len(prompts), device=device), lengths - 1]
    readable = torch.cat([real.new_ones(len(prompts), prefix), real], dim=1)
    tokens: list[list[int]] = [[] for _ in prompts]
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=device)
    stops = torch.tensor(list(stop), device=device)
    for step in range(max_new_tokens):
        chosen = base.get_output_embeddings()(hidden).argmax(dim=-1)
        open_rows &= ~torch.isin(chosen, stops)
        for i in open_rows.nonzero()[:, 0].tolist():
            tokens[i].append(int(chosen[i]))
        if not open_rows.any() or step == max_new_tokens - 1:
            break
        readable = torch.cat([readable, readable.new_ones(len(prompts), 1)], dim=1)
        position = (lengths + step)[:, None]
        hidden = _step(base, chosen[:, None], position, readable[:, None, None], past)[:, 0]
    return tokens


def _step(base: Any, ids: Tensor, positions: Tensor, mask: Tensor, past: Any) -> Tensor:
    output = base.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
    )
    hidden: Tensor = output.last_hidden_state
    return hidden

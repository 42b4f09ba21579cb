"""Generated answers: batches of like length, greedy or by beam search; each equals the one the prompt has alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from nora.training.generation import greedy
from nora.training.vllm_answers import vllm_greedy

MAX_TOKENS = 8192


@dataclass(frozen=True)
class Decoding:
    """``max_length``: tokens the model reads; a longer prompt keeps its first token and its rightmost ones."""

    beams: int
    max_new_tokens: int
    max_length: int
    max_tokens: int = MAX_TOKENS
    """Tokens of a batch, beams and new tokens counted: it bounds memory and changes no answer."""
    backend: str | None = None
    """"vllm" for greedy answers by vLLM; None: transformers."""


def encode_prompts(prompts: Sequence[str], tokenizer: Any, decoding: Decoding) -> list[tuple[int, ...]]:
    """Token ids of each prompt."""
    room = decoding.max_length - decoding.max_new_tokens
    encoded = []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        encoded.append(tuple(ids) if len(ids) <= room else (ids[0], *ids[1 + len(ids) - room :]))
    return encoded


def answer(
    model: Any,
    prompts: Sequence[str],
    tokenizer: Any,
    decoding: Decoding,
    *,
    pad_id: int,
    between: Callable[[], None] = lambda: None,
) -> list[str]:
    """The continuation of each prompt as text, in the order given; ``between`` is called before every batch."""
    encoded = encode_prompts(prompts, tokenizer, decoding)
    stop = int(tokenizer.eos_token_id)
    if decoding.backend == "vllm":
        between()
        tokens = vllm_greedy(
            model, encoded, stop=stop, max_new_tokens=decoding.max_new_tokens, max_length=decoding.max_length
        )
    elif decoding.beams == 1:
        tokens = greedy(
            model, encoded, stop=[stop], max_new_tokens=decoding.max_new_tokens, pad_id=pad_id,
            max_tokens=decoding.max_tokens, between=between,
        )  # fmt: skip
    else:
        tokens = beam_search(model, encoded, decoding, stop=stop, pad_id=pad_id, between=between)
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]


@torch.no_grad()
def beam_search(
    model: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    stop: int,
    pad_id: int,
    between: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """transformers' beam search over left-padded batches with an explicit mask, longest prompts first."""
    was_training = model.training
    model.eval()
    host: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    device = next(host.parameters()).device
    outcome: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    while order:
        between()
        width = len(prompts[order[0]])
        size = max(1, decoding.max_tokens // ((width + decoding.max_new_tokens) * decoding.beams))
        batch, order = order[:size], order[size:]
        ids = torch.full((len(batch), width), pad_id, device=device)
        mask = torch.zeros(len(batch), width, dtype=torch.long, device=device)
        for row, i in enumerate(batch):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i], device=device)
            mask[row, width - len(prompts[i]) :] = 1
        generated = host.generate(
            input_ids=ids,
            attention_mask=mask,
            num_beams=decoding.beams,
            do_sample=False,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=stop,
            pad_token_id=pad_id,
        )
        for row, i in enumerate(batch):
            tokens = generated[row, width:].tolist()
            outcome[i] = tokens[: tokens.index(stop)] if stop in tokens else tokens
    model.train(was_training)
    return outcome

"""Generated answers: batches of like length, greedy or by beam search; each equals the one the prompt has alone."""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PrefixTuningConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import DynamicCache

from nora.adapters import evaluating
from nora.training.batches import Tokenizer
from nora.training.objectives import as_read, base_of


@torch.no_grad()
def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    max_new_tokens: int,
    pad_id: int,
    max_tokens: int = 8192,
    between: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """The most likely continuation of each prompt up to a token of ``stop`` (not included) or ``max_new_tokens``.

    Prompts of like length run together; each continuation equals the one it has alone. The order is kept. Rows that
    have ended leave the batch, at the latest when half of it has. ``between`` is called before every batch with the
    prompts that are answered and all.
    """
    with evaluating(model):
        outcome: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        while order:
            between(len(prompts) - len(order), len(prompts))
            longest = len(prompts[order[0]]) + max_new_tokens
            batch, order = order[: max(1, max_tokens // longest)], order[max(1, max_tokens // longest) :]
            continued = _greedy_batch(model, [prompts[i] for i in batch], stop, max_new_tokens, pad_id)
            for i, tokens in zip(batch, continued, strict=True):
                outcome[i] = tokens
    return outcome


def _greedy_batch(
    model: nn.Module, prompts: list[Sequence[int]], stop: Sequence[int], max_new_tokens: int, pad_id: int
) -> list[list[int]]:
    base = base_of(model)
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
    rows = torch.arange(len(prompts), device=device)  # which prompt a row of the batch answers
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=device)
    stops = torch.tensor(list(stop), device=device)
    for step in range(max_new_tokens):
        chosen = base.get_output_embeddings()(hidden).argmax(dim=-1)
        open_rows &= ~torch.isin(chosen, stops)
        going = open_rows.nonzero()[:, 0]
        for prompt, token in zip(rows[going].tolist(), chosen[going].tolist(), strict=True):
            tokens[prompt].append(token)
        if not len(going) or step == max_new_tokens - 1:
            break
        if 2 * len(going) <= len(rows):  # half of them: what the copies of the cache cost stays below its own size
            past.batch_select_indices(going)
            rows, lengths, readable, chosen = rows[going], lengths[going], readable[going], chosen[going]
            open_rows = open_rows[going]
        readable = torch.cat([readable, readable.new_ones(len(rows), 1)], dim=1)
        position = (lengths + step)[:, None]
        hidden = _step(base, chosen[:, None], position, readable[:, None, None], past)[:, 0]
    return tokens


def _step(base: Any, ids: Tensor, positions: Tensor, mask: Tensor, past: DynamicCache) -> Tensor:
    output = base.base_model(
        input_ids=ids, attention_mask=as_read(mask, base), position_ids=positions, past_key_values=past, use_cache=True
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def save_merged(model: PeftModel, folder: Path) -> None:
    """Writes a copy of the model with its LoRA merged (it may be already); ``model`` stays as it is."""
    copied: Any = copy.deepcopy(model)
    merged = any(layer.merged for layer in copied.modules() if isinstance(layer, LoraLayer))
    (copied.unload() if merged else copied.merge_and_unload()).save_pretrained(folder)


_MEMORY = 0.5  # of the device's memory: the trained model and its optimiser's state stay there


def vllm_greedy(
    model: PeftModel, prompts: Sequence[Sequence[int]], *, stop: int, max_new_tokens: int, max_length: int
) -> list[list[int]]:
    """The most likely continuation of each prompt's ids up to ``stop`` (not included), in the order given."""
    from vllm import LLM, SamplingParams

    dtype = str(next(p for p in model.parameters() if not p.requires_grad).dtype).removeprefix("torch.")
    greedy = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=[stop], detokenize=False)
    with tempfile.TemporaryDirectory() as folder:
        save_merged(model, Path(folder))
        engine = LLM(
            model=folder, dtype=dtype, max_model_len=max_length, skip_tokenizer_init=True, seed=0,
            gpu_memory_utilization=_MEMORY,
        )  # fmt: skip
        answers = engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], greedy, use_tqdm=False)
        del engine
        gc.collect()
    found = [list(answer.outputs[0].token_ids) for answer in answers]
    return [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in found]


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


def encode_prompts(prompts: Sequence[str], tokenizer: Tokenizer, decoding: Decoding) -> list[tuple[int, ...]]:
    """Token ids of each prompt."""
    room = decoding.max_length - decoding.max_new_tokens
    encoded = []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        encoded.append(tuple(ids) if len(ids) <= room else (ids[0], *ids[1 + len(ids) - room :]))
    return encoded


def answer(
    model: nn.Module,
    prompts: Sequence[str],
    tokenizer: Tokenizer,
    decoding: Decoding,
    *,
    pad_id: int,
    between: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """The continuation of each prompt as text, in the order given; ``between`` is called before every batch with the
    prompts that are answered and all."""
    encoded = encode_prompts(prompts, tokenizer, decoding)
    stop = int(tokenizer.eos_token_id)
    if decoding.backend == "vllm":
        between(0, len(prompts))
        assert isinstance(model, PeftModel)
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
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    stop: int,
    pad_id: int,
    between: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """transformers' beam search over left-padded batches with an explicit mask, longest prompts first.

    A prompt is read once: its beams begin with copies of its cache. (transformers' own reads it once per beam.)
    """
    with evaluating(model):
        host = base_of(model)
        device = next(host.parameters()).device
        outcome: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        while order:
            between(len(prompts) - len(order), len(prompts))
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
                past_key_values=_read_once(host, ids, mask, decoding.beams),
                num_beams=decoding.beams,
                do_sample=False,
                max_new_tokens=decoding.max_new_tokens,
                eos_token_id=stop,
                pad_token_id=pad_id,
            )
            for row, i in enumerate(batch):
                tokens = generated[row, width:].tolist()
                outcome[i] = tokens[: tokens.index(stop)] if stop in tokens else tokens
    return outcome


def _read_once(host: Any, ids: Tensor, mask: Tensor, beams: int) -> DynamicCache:
    """The cache of all columns but the last, which generate itself reads, ``beams`` times per row."""
    past = DynamicCache(config=host.config)
    if ids.shape[1] > 1:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        _step(host, ids[:, :-1], positions[:, :-1], mask[:, :-1], past)
        past.batch_repeat_interleave(beams)
    return past

"""Batched, length-sorted scoring of candidate answers, in float32 or better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from nora.training.encoding import EncodedExample, collate
from nora.training.forward import option_scores, token_log_probs


@dataclass(frozen=True)
class Scored:
    """One example's outcome: the mean log-probability (nats per token) of each candidate and the best one."""

    scores: tuple[float, ...]
    prediction: int


def _row_length(example: EncodedExample, share_prompt: bool) -> int:
    lengths = [len(s) for s in example.sequences]
    if not share_prompt:
        return max(lengths)
    return max(lengths) + sum(example.option_lengths)  # close enough to sort and to budget by


def _batches(encoded: Sequence[EncodedExample], share_prompt: bool, max_tokens: int) -> Iterator[list[int]]:
    """Indices by falling length, so many that rows × longest stays within ``max_tokens``."""
    rows = [1 if share_prompt else len(e.sequences) for e in encoded]
    lengths = [_row_length(e, share_prompt) for e in encoded]
    batch: list[int] = []
    num_rows, longest = 0, 0
    for i in sorted(range(len(encoded)), key=lambda i: (-lengths[i], i)):
        if batch and (num_rows + rows[i]) * max(longest, lengths[i]) > max_tokens:
            yield batch
            batch, num_rows, longest = [], 0, 0
        batch.append(i)
        num_rows, longest = num_rows + rows[i], max(longest, lengths[i])
    if batch:
        yield batch


@torch.no_grad()
def score_candidates(
    model: nn.Module,
    encoded: Sequence[EncodedExample],
    *,
    pad_id: int,
    share_prompt: bool,
    max_tokens: int = 4096,
    between: Callable[[], None] = lambda: None,
) -> list[Scored]:
    """Scores every candidate of every example, in eval mode and without autocast; the order is that of ``encoded``.

    ``between`` is called before every batch.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    outcome: list[Scored | None] = [None] * len(encoded)
    for indices in _batches(encoded, share_prompt, max_tokens):
        between()
        batch = collate([encoded[i] for i in indices], pad_id=pad_id, share_prompt=share_prompt).to(device)
        scores = option_scores(model, batch).split(batch.num_options)
        for i, example in zip(indices, scores, strict=True):
            outcome[i] = Scored(tuple(example.tolist()), int(example.argmax()))
    model.train(was_training)
    return [scored for scored in outcome if scored is not None]


def candidate_cross_entropy(scored: Sequence[Scored], gold: Sequence[int]) -> float:
    """Mean over the examples of the cross-entropy over their candidates' scores, nats."""
    losses = [
        F.cross_entropy(torch.tensor([s.scores], dtype=torch.float64), torch.tensor([label])).item()
        for s, label in zip(scored, gold, strict=True)
    ]
    return sum(losses) / len(losses)


@torch.no_grad()
def gold_log_probs(
    model: nn.Module,
    encoded: Sequence[EncodedExample],
    gold: Sequence[int],
    *,
    pad_id: int,
    max_tokens: int = 4096,
    between: Callable[[], None] = lambda: None,
) -> list[float]:
    """Summed log-probability (nats) of each example's gold answer, in eval mode; the order is that of ``encoded``.

    ``between`` is called before every batch.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    outcome = [0.0] * len(encoded)
    for indices in _batches(encoded, True, max_tokens):
        between()
        only = [gold[i] for i in indices]
        batch = collate([encoded[i] for i in indices], pad_id=pad_id, only=only).to(device)
        log_probs = token_log_probs(model, batch)
        sums = log_probs.new_zeros(len(indices)).index_add(0, batch.option, log_probs)
        for i, value in zip(indices, sums.tolist(), strict=True):
            outcome[i] = value
    model.train(was_training)
    return outcome

"""Instruction rows as token ids, packed batches without padding to the longest, and their language-model loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nora.training.chunked_head import token_losses
from nora.training.encoding import Batch
from nora.training.forward import hidden_states

WASTE = 0.02  # padding allowed in a batch, of its tokens


class InstructionLike(Protocol):
    @property
    def prompt(self) -> str: ...
    @property
    def target(self) -> str: ...


@dataclass(frozen=True)
class EncodedText:
    """Token ids of one training text; the tokens from ``first_scored`` on are learnt."""

    ids: tuple[int, ...]
    first_scored: int
    cut: int
    """Tokens that did not fit; where it is positive the text has no end."""
    answer_cut: bool
    """Whether some of the target is among them."""

    @property
    def num_scored(self) -> int:
        return len(self.ids) - self.first_scored


def encode_text(row: InstructionLike, tokenizer: Any, *, cutoff: int, loss_on: str, eos: int) -> EncodedText:
    """Ids of prompt + target, cut on the right at ``cutoff``; the end-of-sequence token only where it fits.

    ``loss_on``: "text" learns every token after the first, "answer" those of the target (found by the length of the
    tokenised prompt). ValueError where nothing of the answer is left to learn from.
    """
    ids = list(tokenizer(row.prompt + row.target)["input_ids"])
    prompt = len(tokenizer(row.prompt)["input_ids"])
    whole = len(ids)
    ids = ids[:cutoff]
    if whole < cutoff:
        ids.append(eos)
    first = 1 if loss_on == "text" else prompt
    if first >= len(ids):
        raise ValueError(f"cutoff: given {cutoff}, the prompt …{row.prompt[-40:]!r} alone has {prompt} tokens")
    return EncodedText(tuple(ids), first, max(0, whole - cutoff), whole > cutoff)


def pack(texts: Sequence[EncodedText], *, pad_id: int, target_tokens: int = 512) -> Batch:
    """The texts of one minibatch side by side in rows, each blind to the others: at most 2 % padding.

    As many rows as keep each near ``target_tokens`` (a longer row costs attention); fewer where they would waste more
    than 2 %. The longest text comes first, each next one goes to the shortest row.
    """
    total = sum(len(text.ids) for text in texts)
    rows: list[list[int]] = []
    for count in range(max(1, min(len(texts), round(total / target_tokens))), 0, -1):
        rows, lengths = [[] for _ in range(count)], [0] * count
        for i in sorted(range(len(texts)), key=lambda i: (-len(texts[i].ids), i)):
            shortest = lengths.index(min(lengths))
            rows[shortest].append(i)
            lengths[shortest] += len(texts[i].ids)
        if max(lengths) * count <= total * (1 + WASTE):
            break
    width = max(lengths)
    ids = torch.full((len(rows), width), pad_id)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), -1)
    row_of: list[int] = []
    predict: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for r, members in enumerate(rows):
        start = 0
        for i in members:
            text = texts[i]
            end = start + len(text.ids)
            ids[r, start:end] = torch.tensor(text.ids)
            positions[r, start:end] = torch.arange(len(text.ids))
            segments[r, start:end] = i
            scored = range(text.first_scored, len(text.ids))
            row_of += [r] * len(scored)
            predict += [start + t - 1 for t in scored]
            targets += [text.ids[t] for t in scored]
            owner += [i] * len(scored)
            start = end
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    mask = causal & (segments[:, :, None] == segments[:, None, :])
    return Batch(
        input_ids=ids,
        position_ids=positions,
        mask=mask[:, None],
        row=torch.tensor(row_of),
        predict_from=torch.tensor(predict),
        targets=torch.tensor(targets),
        option=torch.tensor(owner),
        num_options=(1,) * len(texts),
        num_tokens=total,
    )


def summed_loss(model: Any, batch: Batch) -> Tensor:
    """Sum over the scored tokens of their negative log-probability; logits exist for a few tokens at a time."""
    hidden = hidden_states(model, input_ids=batch.input_ids, position_ids=batch.position_ids, mask=batch.mask)
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    return token_losses(hidden[batch.row, batch.predict_from], head.weight, batch.targets, bias=head.bias).sum()


@dataclass(frozen=True)
class InstructObjective:
    """Language-model loss averaged over the scored tokens of a batch."""

    texts: Sequence[EncodedText]
    pad_id: int

    @property
    def num_examples(self) -> int:
        return len(self.texts)

    def count(self, indices: Sequence[int]) -> int:
        return sum(self.texts[i].num_scored for i in indices)

    def loss(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        device = next(model.parameters()).device
        return summed_loss(model, pack([self.texts[i] for i in indices], pad_id=self.pad_id).to(device))


@torch.no_grad()
def mean_loss(model: nn.Module, texts: Sequence[EncodedText], *, pad_id: int, batch_size: int = 16) -> float:
    """Mean loss per scored token over held-out texts, nats."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = 0.0
    for start in range(0, len(texts), batch_size):
        total += float(summed_loss(model, pack(texts[start : start + batch_size], pad_id=pad_id).to(device)))
    model.train(was_training)
    return total / sum(text.num_scored for text in texts)

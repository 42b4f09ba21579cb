"""Batched, length-sorted scoring of candidate answers, and what is measured on dev and test by a task's metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nora.adapters import evaluating
from nora.errors import RunFailed
from nora.files import Json
from nora.tasks.example import Example
from nora.tasks.metrics import score
from nora.training.batches import EncodedExample, Tokenizer, collate, encode_example
from nora.training.generation import greedy
from nora.training.objectives import option_scores, token_log_probs, tokens_of_one


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
def score_members(
    model: nn.Module,
    encoded: Sequence[EncodedExample],
    *,
    pad_id: int,
    share_prompt: bool,
    members: int = 1,
    max_tokens: int = 4096,
    between: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Scored]]:
    """Per member of a bank (a model alone is one) the scores of every candidate of every example, in eval mode and
    without autocast; the order is that of ``encoded``.

    All members read the same rows, so a batch is one pass over the base. ``between`` is called before every batch with
    the examples that are done and all.
    """
    with evaluating(model):
        device = next(model.parameters()).device
        outcome: list[dict[int, Scored]] = [{} for _ in range(members)]
        done = 0
        for indices in _batches(encoded, share_prompt, tokens_of_one(max_tokens, members, device)):
            between(done, len(encoded))
            done += len(indices)
            batch = collate([encoded[i] for i in indices], pad_id=pad_id, share_prompt=share_prompt).to(device)
            scores = option_scores(model, batch.repeated(members)).view(members, -1).cpu()
            for own, row in zip(outcome, scores, strict=True):
                for i, example in zip(indices, row.split(batch.num_options), strict=True):
                    own[i] = Scored(tuple(example.tolist()), int(example.argmax()))
    return [[own[i] for i in range(len(encoded))] for own in outcome]


def by_likelihood(
    model: nn.Module, questions: Sequence[tuple[str, Example]], tokenizer: Tokenizer, *, pad_id: int, max_length: int
) -> dict[str, Json]:
    """Of (set, question with its listed answers) the accuracy of the answer of the highest log-probability per token
    (the evaluation harness's acc_norm), per set and their mean: what a model knows that cannot yet write it down."""
    encoded = [encode_example(example, tokenizer, max_length=max_length) for _, example in questions]
    (scored,) = score_members(model, encoded, pad_id=pad_id, share_prompt=True)
    right: dict[str, list[bool]] = {}
    for (name, example), found in zip(questions, scored, strict=True):
        right.setdefault(name, []).append(found.prediction in example.correct)
    sets = {name: sum(hits) / len(hits) for name, hits in right.items()}
    return {"mean_accuracy": sum(sets.values()) / len(sets), "sets": sets}


@torch.no_grad()
def rows_differ(model: nn.Module, ids: Sequence[int]) -> float:
    """By how much (nats, the largest) the log-probability of a token in our rows, where candidates share a prompt under
    a mask and positions of their own, is not the one of the model's own forward on that text alone. Of an architecture
    that takes no such mask, or does more to its last hidden states than a linear head, it is no rounding."""
    cut = len(ids) // 2
    texts = (tuple(ids), (*ids[:cut], *reversed(ids[cut:])))
    own: Any = model
    with evaluating(model):
        device = next(model.parameters()).device
        batch = collate([EncodedExample(texts, (len(ids) - cut,) * 2, 0)], pad_id=0).to(device)
        given = token_log_probs(model, batch)
        logits = torch.stack([own(input_ids=torch.tensor([text], device=device)).logits[0] for text in texts])
    wanted = logits[:, cut - 1 : -1].to(given.dtype).log_softmax(-1)
    targets = torch.tensor([text[cut:] for text in texts], device=device)
    return float((wanted.gather(2, targets[..., None]).flatten() - given).abs().max())


def check_rows(model: nn.Module, ids: list[int]) -> None:
    """RunFailed where an architecture reads our rows as other texts than they hold."""
    own: Any = model
    try:
        apart = rows_differ(model, (ids * 4)[:32])
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise RunFailed(f"{own.config.model_type}: reads no rows with a mask of their own ({error})") from None
    if not apart <= (1e-3 if own.dtype in (torch.float32, torch.float64) else 0.3):
        raise RunFailed(f"{own.config.model_type}: in our rows a token's log-probability is off by {apart:.2g} nats")


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
    members: int = 1,
    max_tokens: int = 4096,
    between: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[float]]:
    """Per member of a bank the summed log-probability (nats) of each example's gold answer, in eval mode; the order is
    that of ``encoded``.

    ``between`` is called before every batch with the examples that are done and all.
    """
    with evaluating(model):
        device = next(model.parameters()).device
        outcome = [[0.0] * len(encoded) for _ in range(members)]
        done = 0
        for indices in _batches(encoded, True, tokens_of_one(max_tokens, members, device)):
            between(done, len(encoded))
            done += len(indices)
            only = [gold[i] for i in indices]
            batch = collate([encoded[i] for i in indices], pad_id=pad_id, only=only).to(device).repeated(members)
            log_probs = token_log_probs(model, batch)
            sums = log_probs.new_zeros(len(indices) * members).index_add(0, batch.option, log_probs)
            for own, row in zip(outcome, sums.view(members, -1).tolist(), strict=True):
                for i, value in zip(indices, row, strict=True):
                    own[i] = value
    return outcome


@dataclass(frozen=True)
class Split:
    """Examples of one subset and their token ids."""

    examples: Sequence[Example]
    encoded: Sequence[EncodedExample]

    @classmethod
    def encode(
        cls, examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int, bos: int | None = None
    ) -> Split:
        """Tokenises every example; ValueError where an answer does not fit."""
        return cls(examples, [encode_example(e, tokenizer, max_length=max_length, bos=bos) for e in examples])

    @property
    def gold(self) -> list[int]:
        return [example.gold for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)


Measured = tuple[dict[str, Json], list[dict[str, Json]]]
"""The metrics of a model on a split, and one prediction per example."""


@dataclass(frozen=True)
class Assessor:
    """Measures a model on splits of one task."""

    task: ModuleType
    tokenizer: Tokenizer
    pad_id: int
    share_prompt: bool
    max_length: int
    bf16: bool = False
    """Products in bfloat16, as in the training of a float32 base (autocast)."""
    between: Callable[[int, int], None] = lambda done, total: None
    """Called before every batch with the examples that are done and all; it may raise to stop a long evaluation."""

    def _autocast(self, model: nn.Module) -> torch.autocast:
        return torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def generates(self) -> bool:
        """Whether answers are generated: those of a bank's members come one after the other."""
        return bool(self.task.METRIC == "f1")

    def losses(self, model: nn.Module, split: Split, members: int = 1) -> list[dict[str, Json]]:
        """Per member of a bank the training loss on a split (and accuracy, where scoring the candidates gives it for
        nothing)."""
        if self.task.LOSS == "classification":
            return [metrics for metrics, _ in self.measures(model, split, members)]
        with self._autocast(model):
            return self._gold(model, split, members)

    def measure(self, model: nn.Module, split: Split) -> Measured:
        """Loss, gold loss and the task's metric, and one prediction per example."""
        return self.measures(model, split)[0]

    def measures(self, model: nn.Module, split: Split, members: int = 1) -> list[Measured]:
        """The same per member of a bank whose answers are not generated."""
        assert members == 1 or not self.generates
        with self._autocast(model):
            return self._measures(model, split, members)

    def _measures(self, model: nn.Module, split: Split, members: int) -> list[Measured]:
        predictions: list[list[dict[str, Json]]]
        if self.generates:
            predictions, found = [self._generate(model, split)], self._gold(model, split, members)
        else:
            scored = score_members(
                model, split.encoded, pad_id=self.pad_id, share_prompt=self.share_prompt, members=members,
                between=self.between,
            )  # fmt: skip
            predictions = [_choices(own, split.examples) for own in scored]
            classified = self.task.LOSS == "classification"
            found = [_classified(s, split) for s in scored] if classified else self._gold(model, split, members)
        name = self.task.METRIC
        return [
            ({name: score(name, own), **metrics, "n": len(split)}, own)
            for own, metrics in zip(predictions, found, strict=True)
        ]

    def _gold(self, model: nn.Module, split: Split, members: int) -> list[dict[str, Json]]:
        """Mean loss per gold token over the split, and the mean over examples of each one's loss per token."""
        tokens = [e.option_lengths[g] for e, g in zip(split.encoded, split.gold, strict=True)]
        return [
            {
                "loss": -sum(log_probs) / sum(tokens),
                "gold_nll": -sum(p / n for p, n in zip(log_probs, tokens, strict=True)) / len(tokens),
                "n": len(split),
            }
            for log_probs in gold_log_probs(
                model, split.encoded, split.gold, pad_id=self.pad_id, members=members, between=self.between
            )
        ]

    def _generate(self, model: nn.Module, split: Split) -> list[dict[str, Json]]:
        room = self.max_length - self.task.MAX_NEW_TOKENS
        prompts = []
        for encoded, example in zip(split.encoded, split.examples, strict=True):
            ids = encoded.sequences[example.gold][: -encoded.option_lengths[example.gold]]
            prompts.append(ids if len(ids) <= room else (*ids[:1], *ids[1 + len(ids) - room :]))
        stop = [self.tokenizer.eos_token_id, self.tokenizer(self.task.STOP)["input_ids"][-1]]
        continued = greedy(
            model,
            prompts,
            stop=stop,
            max_new_tokens=self.task.MAX_NEW_TOKENS,
            pad_id=self.pad_id,
            between=self.between,
        )
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in continued]
        return [
            {"prediction": text, "references": list(e.references)}
            for text, e in zip(texts, split.examples, strict=True)
        ]


def _classified(scored: Sequence[Scored], split: Split) -> dict[str, Json]:
    gold = [-s.scores[e.gold] for s, e in zip(scored, split.examples, strict=True)]
    return {"loss": candidate_cross_entropy(scored, split.gold), "gold_nll": sum(gold) / len(gold)}


def _choices(scored: Sequence[Scored], examples: Sequence[Example]) -> list[dict[str, Json]]:
    """Chosen candidates; scores rounded to six significant digits."""
    return [
        {"prediction": s.prediction, "correct": list(e.correct), "scores": [float(f"{x:.6g}") for x in s.scores]}
        for s, e in zip(scored, examples, strict=True)
    ]

"""What is measured on dev after each epoch, and on dev and test at the end, by a task's loss and metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from nora.tasks.example import Example
from nora.tasks.metrics import score
from nora.training.encoding import EncodedExample, encode_example
from nora.training.evaluation import Scored, candidate_cross_entropy, gold_log_probs, score_candidates
from nora.training.generation import greedy


@dataclass(frozen=True)
class Split:
    """Examples of one subset and their token ids."""

    examples: Sequence[Example]
    encoded: Sequence[EncodedExample]

    @classmethod
    def encode(cls, examples: Sequence[Example], tokenizer: Any, *, max_length: int, bos: int | None = None) -> Split:
        """Tokenises every example; ValueError where an answer does not fit."""
        return cls(examples, [encode_example(e, tokenizer, max_length=max_length, bos=bos) for e in examples])

    @property
    def gold(self) -> list[int]:
        return [example.gold for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class Assessor:
    """Measures a model on splits of one task."""

    task: ModuleType
    tokenizer: Any
    pad_id: int
    share_prompt: bool
    max_length: int
    between: Callable[[], None] = lambda: None
    """Called before every batch; it may raise to stop a long evaluation."""

    def loss(self, model: nn.Module, split: Split) -> dict[str, Any]:
        """The training loss on a split (and accuracy, where scoring the candidates gives it for nothing)."""
        if self.task.LOSS == "classification":
            return self.measure(model, split)[0]
        return self._gold(model, split)

    def measure(self, model: nn.Module, split: Split) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Loss, gold loss and the task's metric, and one prediction per example."""
        if self.task.METRIC == "f1":
            predictions = self._generate(model, split)
            metrics = self._gold(model, split)
        else:
            scored = score_candidates(
                model, split.encoded, pad_id=self.pad_id, share_prompt=self.share_prompt, between=self.between
            )
            predictions = _choices(scored, split.examples)
            if self.task.LOSS == "classification":
                gold = [-s.scores[e.gold] for s, e in zip(scored, split.examples, strict=True)]
                metrics = {"loss": candidate_cross_entropy(scored, split.gold), "gold_nll": sum(gold) / len(gold)}
            else:
                metrics = self._gold(model, split)
        metrics = {self.task.METRIC: score(self.task.METRIC, predictions), **metrics, "n": len(split)}
        return metrics, predictions

    def _gold(self, model: nn.Module, split: Split) -> dict[str, Any]:
        """Mean loss per gold token over the split, and the mean over examples of each one's loss per token."""
        log_probs = gold_log_probs(model, split.encoded, split.gold, pad_id=self.pad_id, between=self.between)
        tokens = [e.option_lengths[g] for e, g in zip(split.encoded, split.gold, strict=True)]
        return {
            "loss": -sum(log_probs) / sum(tokens),
            "gold_nll": -sum(p / n for p, n in zip(log_probs, tokens, strict=True)) / len(tokens),
            "n": len(split),
        }

    def _generate(self, model: nn.Module, split: Split) -> list[dict[str, Any]]:
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


def _choices(scored: Sequence[Scored], examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Chosen candidates; scores rounded to six significant digits."""
    return [
        {"prediction": s.prediction, "correct": list(e.correct), "scores": [float(f"{x:.6g}") for x in s.scores]}
        for s, e in zip(scored, examples, strict=True)
    ]

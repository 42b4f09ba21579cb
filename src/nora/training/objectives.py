"""A task's examples as something the loop can minimise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nora.training.encoding import EncodedExample, collate
from nora.training.losses import classification_loss, option_lm_loss


@dataclass(frozen=True)
class ClassificationObjective:
    """Cross-entropy over the candidates, averaged over the examples of a batch."""

    encoded: Sequence[EncodedExample]
    gold: Sequence[int]
    pad_id: int
    share_prompt: bool

    @property
    def num_examples(self) -> int:
        return len(self.encoded)

    def count(self, indices: Sequence[int]) -> int:
        return len(indices)

    def loss(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        device = next(model.parameters()).device
        batch = collate([self.encoded[i] for i in indices], pad_id=self.pad_id, share_prompt=self.share_prompt)
        gold = torch.tensor([self.gold[i] for i in indices], device=device)
        return classification_loss(model, batch.to(device), gold)


@dataclass(frozen=True)
class OptionLMObjective:
    """Language-model loss on the gold answer's tokens, averaged over the tokens of a batch."""

    encoded: Sequence[EncodedExample]
    gold: Sequence[int]
    pad_id: int

    @property
    def num_examples(self) -> int:
        return len(self.encoded)

    def count(self, indices: Sequence[int]) -> int:
        return sum(self.encoded[i].option_lengths[self.gold[i]] for i in indices)

    def loss(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        device = next(model.parameters()).device
        batch = collate([self.encoded[i] for i in indices], pad_id=self.pad_id, only=[self.gold[i] for i in indices])
        return option_lm_loss(model, batch.to(device))

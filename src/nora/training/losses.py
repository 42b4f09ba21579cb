"""The two losses of the few-shot protocol; both take a model and a micro-batch and return nats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nora.training.encoding import Batch
from nora.training.forward import option_scores, token_log_probs


def classification_loss(model: Any, batch: Batch, gold: Tensor) -> Tensor:
    """Sum over the examples of the cross-entropy over their candidates' mean log-probabilities; ``gold`` [examples]."""
    scores = option_scores(model, batch)
    losses = [
        F.cross_entropy(example[None], label[None])
        for example, label in zip(scores.split(batch.num_options), gold, strict=True)
    ]
    return torch.stack(losses).sum()


def option_lm_loss(model: Any, batch: Batch) -> Tensor:
    """Sum over the scored tokens (those of the gold answers) of their negative log-probability."""
    return -token_log_probs(model, batch).sum()

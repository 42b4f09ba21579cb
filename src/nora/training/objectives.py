"""A task's examples as something the loop can minimise: a forward pass, and losses only where tokens are scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, PrefixTuningConfig
from torch import Tensor, nn
from torch.nn import functional as F

from nora.adapters import Bank, evaluating
from nora.adapters.bank import one_draw
from nora.training.batches import Batch, EncodedExample, EncodedText, collate, pack

CHUNK_LOGITS = 2**24  # logits at a time: 64 MiB in float32


def _logits_at_once(device: torch.device) -> int:
    """``CHUNK_LOGITS``; on a GPU a sixteenth of its free memory where that is more (in 64 MiB a head of 256,000 words
    has 65 rows and reads its weight for each). Rows do not see each other, so the chunk changes rounding at most."""
    if device.type != "cuda":
        return CHUNK_LOGITS
    return max(CHUNK_LOGITS, free_memory(device) // 16 // 4)


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that nobody uses, what torch keeps in its own cache among them."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, chunk: int, cap: float | None
    ) -> Tensor:
        wanted = torch.promote_types(hidden.dtype, torch.float32)
        losses = hidden.new_empty(len(hidden), dtype=wanted)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _capped(torch.nn.functional.linear(hidden[part], weight, bias).to(wanted), cap)
            losses[part] = torch.nn.functional.cross_entropy(logits, targets[part], reduction="none")
            if slopes is not None:
                excess = torch.softmax(logits, dim=-1)
                excess[torch.arange(len(excess), device=excess.device), targets[part]] -= 1
                if cap is not None:
                    excess *= 1 - (logits / cap) ** 2
                slopes[part] = (excess.to(weight.dtype) @ weight).to(hidden.dtype)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (gradients[0][:, None] * slopes).to(slopes.dtype), None, None, None, None, None


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _times(hidden: Tensor, factor: float) -> Tensor:
    return hidden if factor == 1.0 else hidden * factor


def _of_head(base: Any) -> tuple[float, float | None]:
    """What a model does to its logits beside the linear head: a factor (Cohere, Granite) and a soft cap (Gemma 2)."""
    said = base.config.get_text_config()
    factor = (getattr(said, "logit_scale", None) or 1.0) / (getattr(said, "logits_scaling", None) or 1.0)
    return factor, getattr(said, "final_logit_softcapping", None)


def token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int | None = None,
    cap: float | None = None,
) -> Tensor:
    """Negative log-probability [t] (nats, float32 or better) of ``targets`` [t] under a frozen head [v, h].

    ``cap``: logits are cap · tanh(logits / cap).

    ValueError where the head itself is to be trained: its gradient is not computed here.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("given a head that requires gradients, required a frozen one")
    size = chunk or max(1, _logits_at_once(weight.device) // len(weight))
    losses: Tensor = _TokenLosses.apply(hidden, weight, targets, bias, size, cap)
    return losses


def base_of(model: nn.Module) -> Any:
    """The language model below PEFT's wrapper or a bank: its class has attributes that no type of torch knows."""
    return model.get_base_model() if isinstance(model, PeftModel | Bank) else model


def as_read(mask: Tensor, base: Any) -> Tensor:
    """A mask that is True where a query may read, as the model's attention takes it: one without PyTorch's own kernels
    (GPT-J, GPT-Neo) adds it to the scores."""
    if base.config._attn_implementation != "eager":
        return mask
    least = torch.finfo(base.dtype).min
    return torch.zeros_like(mask, dtype=base.dtype).masked_fill(~mask, least)


def hidden_states(model: nn.Module, *, input_ids: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states [b, n, h] under an explicit mask [b, 1, n, n] and explicit positions.

    With prefix tuning every query also reads the prefix, and the first token keeps the position it has without one.
    """
    base = base_of(model)
    past: Any = None
    if isinstance(model, Bank):
        past = model.get_prompt(len(input_ids))
    elif isinstance(model, PeftModel) and isinstance(model.active_peft_config, PrefixTuningConfig):
        past = model.get_prompt(len(input_ids))
    if past is not None:
        prefix = mask.new_ones(*mask.shape[:3], past.get_seq_length())
        mask = torch.cat([prefix, mask], dim=3)
    return base.base_model(
        input_ids=input_ids,
        attention_mask=as_read(mask, base),
        position_ids=position_ids,
        past_key_values=past,
        use_cache=past is not None,
    ).last_hidden_state


def _batch_states(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states [b, n, h] of a batch; dropout is that of one member's rows, one text to a row."""
    with one_draw(batch.members, batch.padded, batch.source):
        return hidden_states(model, input_ids=batch.input_ids, position_ids=batch.position_ids, mask=batch.mask)


def token_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability [t] (nats, float32 or better) of each scored token; the head runs on those positions alone."""
    hidden = _batch_states(model, batch)
    base = base_of(model)
    factor, cap = _of_head(base)
    logits = base.get_output_embeddings()(_times(hidden[batch.row, batch.predict_from], factor))
    logits = _capped(logits.to(torch.promote_types(logits.dtype, torch.float32)), cap)
    return torch.log_softmax(logits, dim=-1).gather(1, batch.targets[:, None])[:, 0]


def option_scores(model: nn.Module, batch: Batch) -> Tensor:
    """Mean log-probability per token of each candidate, flat over the batch [sum(num_options)]."""
    log_probs = token_log_probs(model, batch)
    total = log_probs.new_zeros(sum(batch.num_options)).index_add(0, batch.option, log_probs)
    count = log_probs.new_zeros(sum(batch.num_options)).index_add(0, batch.option, torch.ones_like(log_probs))
    return total / count


def classification_losses(model: nn.Module, batch: Batch, gold: Tensor, *, members: int = 1) -> Tensor:
    """Cross-entropy [examples, members] over the candidates' mean log-probabilities; ``gold`` [examples] is that of one
    member's rows, which ``batch`` holds ``members`` times."""
    scores = option_scores(model, batch).view(members, -1)
    options = batch.num_options[: len(gold)]
    return torch.stack(
        [
            F.cross_entropy(example, label.expand(members), reduction="none")
            for example, label in zip(scores.split(options, dim=1), gold, strict=True)
        ]
    )


def option_lm_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Sum over the scored tokens (those of the gold answers) of their negative log-probability."""
    return -token_log_probs(model, batch).sum()


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
        return self._losses(model, indices, 1).sum()

    def losses(self, model: nn.Module, indices: Sequence[int], members: int) -> Tensor:
        return self._losses(model, indices, members).sum(0)

    def _losses(self, model: nn.Module, indices: Sequence[int], members: int) -> Tensor:
        device = next(model.parameters()).device
        examples = [self.encoded[i] for i in indices]
        batch = collate(examples, pad_id=self.pad_id, share_prompt=self.share_prompt, side_by_side=True)
        gold = torch.tensor([self.gold[i] for i in indices], device=device)
        return classification_losses(model, batch.to(device).repeated(members), gold, members=members)


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
        return option_lm_loss(model, self._batch(model, indices))

    def losses(self, model: nn.Module, indices: Sequence[int], members: int) -> Tensor:
        return -token_log_probs(model, self._batch(model, indices).repeated(members)).view(members, -1).sum(1)

    def _batch(self, model: nn.Module, indices: Sequence[int]) -> Batch:
        examples, gold = [self.encoded[i] for i in indices], [self.gold[i] for i in indices]
        batch = collate(examples, pad_id=self.pad_id, only=gold, side_by_side=True)
        return batch.to(next(model.parameters()).device)


def scored_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Negative log-probability [t] (nats) of each scored token; logits exist for a few of them at a time."""
    hidden = _batch_states(model, batch)
    base = base_of(model)
    head = base.get_output_embeddings()
    factor, cap = _of_head(base)
    scored = _times(hidden[batch.row, batch.predict_from], factor)
    return token_losses(scored, head.weight, batch.targets, bias=head.bias, cap=cap)


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
        return scored_losses(model, self._batch(model, indices)).sum()

    def losses(self, model: nn.Module, indices: Sequence[int], members: int) -> Tensor:
        return scored_losses(model, self._batch(model, indices).repeated(members)).view(members, -1).sum(1)

    def _batch(self, model: nn.Module, indices: Sequence[int]) -> Batch:
        batch = pack([self.texts[i] for i in indices], pad_id=self.pad_id)
        return batch.to(next(model.parameters()).device)


def tokens_of_one(most: int, members: int, device: torch.device) -> int:
    """Of ``most`` tokens at once, those that each member of a bank reads: on a CPU all of them share that number; a
    GPU, where few tokens leave it waiting, takes more at once."""
    return max(1, most // members if device.type == "cpu" else min(most, 2**16 // members))


@torch.no_grad()
def mean_losses(
    model: nn.Module, texts: Sequence[EncodedText], *, pad_id: int, members: int = 1, batch_size: int = 16
) -> list[float]:
    """Per member of a bank (a model alone is one) the mean loss per scored token over held-out texts, nats; NaN if no
    text has a scored token."""
    with evaluating(model):
        device = next(model.parameters()).device
        totals, size = [0.0] * members, tokens_of_one(batch_size, members, device)
        for start in range(0, len(texts), size):
            batch = pack(texts[start : start + size], pad_id=pad_id).to(device).repeated(members)
            losses = scored_losses(model, batch).view(members, -1).sum(1).tolist()
            totals = [total + loss for total, loss in zip(totals, losses, strict=True)]
    scored = sum(text.num_scored for text in texts)
    return [total / scored if scored else math.nan for total in totals]


def mean_loss(model: nn.Module, texts: Sequence[EncodedText], *, pad_id: int, batch_size: int = 16) -> float:
    """The same of one model."""
    return mean_losses(model, texts, pad_id=pad_id, batch_size=batch_size)[0]

"""One forward pass of a base model with its adapter: hidden states, and logits only where they are scored."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, PrefixTuningConfig
from torch import Tensor

from nora.training.encoding import Batch


def hidden_states(model: Any, *, input_ids: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states [b, n, h] under an explicit mask [b, 1, n, n] and explicit positions.

    With prefix tuning every query also reads the prefix, and the first token keeps the position it has without one.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    past: Any = None
    if isinstance(model, PeftModel) and isinstance(model.active_peft_config, PrefixTuningConfig):
        past = model.get_prompt(len(input_ids))
        prefix = mask.new_ones(*mask.shape[:3], past.get_seq_length())
        mask = torch.cat([prefix, mask], dim=3)
    return base.base_model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=past,
        use_cache=past is not None,
    ).last_hidden_state


def token_log_probs(model: Any, batch: Batch) -> Tensor:
    """Log-probability [t] (nats, float32 or better) of each scored token; the head runs on those positions alone."""
    hidden = hidden_states(model, input_ids=batch.input_ids, position_ids=batch.position_ids, mask=batch.mask)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    logits = base.get_output_embeddings()(hidden[batch.row, batch.predict_from])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits, dim=-1).gather(1, batch.targets[:, None])[:, 0]


def option_scores(model: Any, batch: Batch) -> Tensor:
    """Mean log-probability per token of each candidate, flat over the batch [sum(num_options)]."""
    log_probs = token_log_probs(model, batch)
    total = log_probs.new_zeros(sum(batch.num_options)).index_add(0, batch.option, log_probs)
    count = log_probs.new_zeros(sum(batch.num_options)).index_add(0, batch.option, torch.ones_like(log_probs))
    return total / count

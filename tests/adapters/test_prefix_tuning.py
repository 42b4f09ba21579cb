"""Prefix tuning, float64: really processed tokens in the cache, positions as without a prefix.

References: the base model's own forward on the concatenated text, on an explicit cache, and PEFT's own forward.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import DynamicCache

from nora.adapters import prefix_init_, prove_prefix
from nora.adapters.prefix import drawn_tokens, token_keys_values
from nora.training.objectives import hidden_states
from twins import tiny_opt

P = 5
TEXT = torch.tensor([[1, 7, 19, 33, 2, 60, 11]])


def _prefixed() -> tuple[Any, Any, Tensor]:
    """(a twin without prefix, the model with one, the drawn tokens)."""
    tokens = drawn_tokens(64, P, seed=3)
    twin, base = tiny_opt(dtype=torch.float64), tiny_opt(dtype=torch.float64)
    model = get_peft_model(base, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=P)).double()
    prefix_init_(model, token_keys_values(base, tokens))
    return twin, model.eval(), tokens


def _ours(model: Any, first_position: int) -> Tensor:
    n = TEXT.shape[1]
    mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    with torch.no_grad():
        hidden = hidden_states(model, input_ids=TEXT, position_ids=torch.arange(n)[None] + first_position, mask=mask)
        return model.get_base_model().lm_head(hidden)


def test_the_prefix_is_what_the_base_makes_of_the_drawn_tokens() -> None:
    """At positions shifted by the prefix's length the output equals the base's on [drawn tokens; text]."""
    twin, model, tokens = _prefixed()
    with torch.no_grad():
        expected = twin(input_ids=torch.cat([tokens, TEXT], dim=1)).logits[:, P:]
    torch.testing.assert_close(_ours(model, first_position=P), expected, rtol=1e-10, atol=1e-10)


def test_positions_start_as_without_a_prefix() -> None:
    """Equal to the base's own forward over an explicit cache with explicit positions from 0 and an ordinary mask."""
    twin, model, tokens = _prefixed()
    n = TEXT.shape[1]
    cache = DynamicCache()
    for i, (keys, values) in enumerate(token_keys_values(twin, tokens)):
        cache.update(keys[None], values[None], i)
    with torch.no_grad():
        expected = twin(
            input_ids=TEXT,
            past_key_values=cache,
            attention_mask=torch.ones(1, P + n, dtype=torch.long),
            position_ids=torch.arange(n)[None],
        ).logits
    torch.testing.assert_close(_ours(model, first_position=0), expected, rtol=1e-10, atol=1e-10)


def test_the_first_token_gets_the_position_embedding_it_has_without_a_prefix() -> None:
    twin, model, _ = _prefixed()
    seen = []
    table = model.get_base_model().model.decoder.embed_positions
    handle = table.register_forward_hook(lambda module, inputs, output: seen.append(output))
    _ours(model, first_position=0)
    handle.remove()
    with torch.no_grad():
        without = twin.model.decoder.embed_positions(torch.ones(1, TEXT.shape[1], dtype=torch.long))
    torch.testing.assert_close(seen[0].expand_as(without), without)


def test_pefts_own_forward_is_ours_with_shifted_positions() -> None:
    _, model, _ = _prefixed()
    with torch.no_grad():
        pefts = model(input_ids=TEXT, attention_mask=torch.ones_like(TEXT)).logits
    torch.testing.assert_close(_ours(model, first_position=P), pefts, rtol=1e-10, atol=1e-10)
    assert (_ours(model, first_position=0) - pefts).abs().max() > 1e-3


def test_the_proof_reads_what_the_forward_pass_reads() -> None:
    twin, model, tokens = _prefixed()
    assert prove_prefix(model, twin, tokens).passed
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight[2, 40] += 0.01
    report = prove_prefix(model, twin, tokens)
    assert not report.passed and "differs from the drawn tokens" in report.problems[0]
    assert not prove_prefix(model, twin, drawn_tokens(64, P, seed=4)).passed


def test_a_fresh_prefix_of_pefts_fails_the_proof() -> None:
    twin, base = tiny_opt(), tiny_opt()
    model = get_peft_model(base, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=P)).eval()
    assert not prove_prefix(model, twin, drawn_tokens(64, P, seed=3)).passed


def test_every_vocabulary_id_may_be_drawn() -> None:
    drawn = torch.cat([drawn_tokens(8, 50, seed=s) for s in range(4)])
    assert set(drawn.flatten().tolist()) == set(range(8))
    assert torch.equal(drawn_tokens(64, P, seed=1), drawn_tokens(64, P, seed=1))


def test_a_prefix_of_another_length_is_refused() -> None:
    twin, model, _ = _prefixed()
    with pytest.raises(ValueError, match="prefix: given keys and values for .*required"):
        prefix_init_(model, token_keys_values(twin, drawn_tokens(64, P + 1, seed=0)))

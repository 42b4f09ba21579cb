"""Pretraining of a tiny base: seeded, learns a repeated text, perplexity against a loop over tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from make_base.text import PretrainSettings, perplexity, pretrain
from nora.kinds.parts.bases import random_model
from twins import same_bytes, snapshot

SETTINGS = PretrainSettings(
    architecture={
        "model_type": "opt",
        "vocab_size": 32,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    seed=0,
    steps=30,
    batch_size=4,
    length=16,
    lr=1e-2,
    warmup_steps=5,
    weight_decay=0.1,
    max_grad_norm=1.0,
)
BLOCKS = (torch.arange(8 * 16) % 7 + 3).view(8, 16)


def test_learns_and_is_repeatable_bit_for_bit() -> None:
    state = torch.get_rng_state()
    one, again = pretrain(SETTINGS, BLOCKS), pretrain(SETTINGS, BLOCKS)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bytes(snapshot(one.model), snapshot(again.model))
    assert perplexity(one.model, BLOCKS) < 0.5 * perplexity(random_model(SETTINGS.architecture, seed=0), BLOCKS)
    assert one.tokens_seen == 30 * 4 * 16
    other = pretrain(replace(SETTINGS, seed=1), BLOCKS)
    assert not same_bytes(snapshot(one.model), snapshot(other.model))


def test_perplexity_is_exp_of_the_mean_next_token_loss() -> None:
    model = random_model(SETTINGS.architecture, seed=0).eval()
    total = 0.0
    with torch.no_grad():
        for block in BLOCKS:
            log_probs = torch.log_softmax(model(input_ids=block[None]).logits[0].double(), dim=-1)
            total -= sum(log_probs[i, block[i + 1]].item() for i in range(15))
    assert perplexity(model, BLOCKS, batch_size=3) == pytest.approx(math.exp(total / (8 * 15)), rel=1e-5)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        pretrain(replace(SETTINGS, lr=1e30), BLOCKS)

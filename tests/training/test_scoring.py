"""Candidate scores, float64: shared-prompt rows = separate rows = one plain forward per candidate (< 1e-10)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch.nn import functional as F

from nora.adapters import prefix_init_
from nora.adapters.prefix import drawn_tokens, token_keys_values
from nora.tasks.example import Example
from nora.training.batches import EncodedExample, collate, encode_example
from nora.training.objectives import ClassificationObjective, OptionLMObjective, option_scores
from nora.training.scoring import Scored, candidate_cross_entropy, score_members
from twins import randomize_factors, tiny_opt, with_lora


def _model(kind: str) -> Any:
    base = tiny_opt(dtype=torch.float64, vocab=1024, dropout=0.1)
    if kind == "base":
        return base
    if kind == "lora":
        model: Any = with_lora(base)
        randomize_factors(model)
        return model
    tokens = drawn_tokens(1024, 5, seed=0)
    model = get_peft_model(base, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5)).double()
    prefix_init_(model, token_keys_values(base, tokens))
    return model.eval()


def _encode(examples: list[Example], tokenizer: Any, max_length: int = 100) -> list[EncodedExample]:
    return [encode_example(e, tokenizer, max_length=max_length) for e in examples]


@pytest.mark.parametrize("max_length", [100, 15])
@pytest.mark.parametrize("kind", ["base", "lora", "prefix"])
def test_shared_rows_separate_rows_and_the_naive_path_agree(
    kind: str, max_length: int, tokenizer: Any, examples: list[Example], naive: Any
) -> None:
    """Candidates of several tokens, of unequal lengths, with and without truncation (then little is shared)."""
    model = _model(kind)
    encoded = _encode([e for e in examples if max_length == 100 or len(e.candidates[0]) < 20], tokenizer, max_length)
    assert max(n for e in encoded for n in e.option_lengths) >= 3
    with torch.no_grad():
        one_by_one = torch.stack(
            [naive(model, list(s), n) for e in encoded for s, n in zip(e.sequences, e.option_lengths, strict=True)]
        )
        for share in (True, False):
            scores = option_scores(model, collate(encoded, pad_id=0, share_prompt=share))
            assert scores.dtype == torch.float64
            assert (scores - one_by_one).abs().max() < 1e-10
    assert one_by_one.std() > 0.01, "the candidates are told apart"


@pytest.mark.parametrize("share", [True, False])
def test_batched_length_sorted_scoring_equals_one_by_one(
    share: bool, tokenizer: Any, examples: list[Example], naive: Any
) -> None:
    model = _model("lora").train()
    encoded = _encode(examples * 3, tokenizer)
    with torch.no_grad():
        model.eval()
        expected = [
            [naive(model, list(s), n).item() for s, n in zip(e.sequences, e.option_lengths, strict=True)]
            for e in encoded
        ]
        model.train()
    seen: list[tuple[int, int]] = []
    for max_tokens in (1, 200, 100_000):
        seen.clear()
        (scored,) = score_members(
            model, encoded, pad_id=0, share_prompt=share, max_tokens=max_tokens,
            between=lambda *counts: seen.append(counts),
        )  # fmt: skip
        done = [counts[0] for counts in seen]
        assert done == sorted(set(done)) and done[0] == 0 and {counts[1] for counts in seen} == {len(encoded)}
        assert model.training, "the mode is put back"
        for found, wanted in zip(scored, expected, strict=True):
            assert max(abs(a - b) for a, b in zip(found.scores, wanted, strict=True)) < 1e-10
            assert found.prediction == max(range(len(wanted)), key=wanted.__getitem__)


def test_what_stands_in_the_padding_does_not_matter(tokenizer: Any, examples: list[Example]) -> None:
    model, encoded = _model("base"), _encode(examples, tokenizer)
    with torch.no_grad():
        one, other = (option_scores(model, collate(encoded, pad_id=p)) for p in (0, 77))
    assert torch.equal(one, other)


@pytest.mark.parametrize("share", [True, False])
def test_classification_loss_is_the_cross_entropy_of_naive_scores(
    share: bool, tokenizer: Any, examples: list[Example], naive: Any
) -> None:
    model, encoded = _model("lora"), _encode(examples, tokenizer)
    objective = ClassificationObjective(encoded, [e.gold for e in examples], 0, share)
    indices = [3, 1, 2]
    with torch.no_grad():
        expected = sum(
            F.cross_entropy(
                torch.stack(
                    [
                        naive(model, list(s), n)
                        for s, n in zip(encoded[i].sequences, encoded[i].option_lengths, strict=True)
                    ]
                )[None],
                torch.tensor([examples[i].gold]),
            ).item()
            for i in indices
        )
        assert objective.loss(model, indices).item() == pytest.approx(expected, abs=1e-10)
    assert objective.count(indices) == 3 and objective.num_examples == len(examples)


def test_language_model_loss_is_the_gold_answers_negative_log_likelihood(
    tokenizer: Any, examples: list[Example], naive: Any
) -> None:
    model, encoded = _model("lora"), _encode(examples, tokenizer)
    gold = [e.gold for e in examples]
    objective = OptionLMObjective(encoded, gold, 0)
    indices = [0, 2, 4]
    lengths = [encoded[i].option_lengths[gold[i]] for i in indices]
    with torch.no_grad():
        expected = -sum(
            naive(model, list(encoded[i].sequences[gold[i]]), n).item() * n
            for i, n in zip(indices, lengths, strict=True)
        )
        assert objective.loss(model, indices).item() == pytest.approx(expected, abs=1e-10)
    assert objective.count(indices) == sum(lengths)


def test_candidate_cross_entropy_by_hand() -> None:
    scored = [Scored((-1.0, -2.0), 0), Scored((-3.0, -1.0, -2.0), 1), Scored((-1.0, -1.5), 0)]
    ce = [
        -math.log(math.exp(-1) / (math.exp(-1) + math.exp(-2))),
        -math.log(math.exp(-2) / (math.exp(-3) + math.exp(-1) + math.exp(-2))),
        -math.log(math.exp(-1.5) / (math.exp(-1) + math.exp(-1.5))),
    ]
    assert candidate_cross_entropy(scored, [0, 2, 1]) == pytest.approx(sum(ce) / 3)

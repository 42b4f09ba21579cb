"""Batched greedy decoding against transformers' own generate, one prompt at a time, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoTokenizer

from nora import tasks
from nora.adapters import prefix_init_
from nora.adapters.prefix import drawn_tokens, token_keys_values
from nora.training import scoring
from nora.training.generation import greedy
from nora.training.objectives import hidden_states
from twins import randomize_factors, tiny_opt, with_lora

PROMPTS = [[1, 7, 9], [1, 5], [1, 4, 8, 15, 16, 23, 42], [1, 60, 61, 62, 63]]


def plain(model: Any, prompt: list[int], stop: int, count: int) -> list[int]:
    """transformers' generate on one prompt, cut at the stop token."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=[]
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens[: tokens.index(stop)] if stop in tokens else tokens


@pytest.mark.parametrize("adapted", [False, True])
def test_equals_generate_one_by_one(adapted: bool) -> None:
    model: Any = tiny_opt(dtype=torch.float64)
    if adapted:
        model = with_lora(model)
        randomize_factors(model)
    model.eval()
    free = [plain(model, p, -1, 12) for p in PROMPTS]
    stop = free[0][4]  # a token that really comes, so that rows end at different steps
    expected = [plain(model, p, stop, 12) for p in PROMPTS]
    assert greedy(model, PROMPTS, stop=[stop], max_new_tokens=12, pad_id=0) == expected
    assert greedy(model, PROMPTS, stop=[stop], max_new_tokens=12, pad_id=0, max_tokens=1) == expected
    assert len({len(e) for e in expected}) > 1


def test_with_a_prefix_it_equals_recomputing_everything_at_each_token() -> None:
    base = tiny_opt(dtype=torch.float64)
    keys_values = token_keys_values(base, drawn_tokens(64, 5, seed=0))
    model: Any = get_peft_model(base, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5)).double()
    prefix_init_(model, 3 * keys_values)
    model.eval()

    def slow(prompt: list[int]) -> list[int]:
        ids = list(prompt)
        for _ in range(8):
            n = len(ids)
            hidden = hidden_states(
                model, input_ids=torch.tensor([ids]), position_ids=torch.arange(n)[None],
                mask=torch.ones(n, n, dtype=torch.bool).tril()[None, None],
            )  # fmt: skip
            ids.append(int(base.get_output_embeddings()(hidden[:, -1]).argmax()))
        return ids[len(prompt) :]

    with torch.no_grad():
        assert greedy(model, PROMPTS, stop=[], max_new_tokens=8, pad_id=0) == [slow(p) for p in PROMPTS]


def test_squad_is_generated_up_to_the_newline(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 50 new tokens after the bare prompt, ended by EOS or the newline that closes the training target."""
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "assets" / "opt_mini")
    task = tasks.load("superglue", "squad")
    example = task.build({"title": "T", "context": "C.", "question": "Q?", "answers": {"text": ["two words"]}})
    seen: dict[str, Any] = {}

    def greedy(model: Any, prompts: Any, **settings: Any) -> list[list[int]]:
        seen.update(settings, prompts=prompts)
        return [tokenizer(" two words")["input_ids"][1:]]

    monkeypatch.setattr(scoring, "greedy", greedy)
    assessor = scoring.Assessor(task, tokenizer, pad_id=1, share_prompt=True, max_length=128)
    predictions = assessor._generate(nn.Module(), scoring.Split.encode([example], tokenizer, max_length=128))
    assert predictions == [{"prediction": "two words", "references": ["two words"]}]
    (prompt,) = seen["prompts"]
    assert list(prompt) == tokenizer("Title: T\nContext: C.\nQuestion: Q?\nAnswer:")["input_ids"]
    newline = tokenizer(example.candidates[0])["input_ids"][-1]
    assert tokenizer.decode([newline]) == "\n"
    assert seen["stop"] == [tokenizer.eos_token_id, newline] and seen["max_new_tokens"] == 50

"""Examples, a real tokenizer and the naive way to score a candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig
from transformers import AutoTokenizer, DynamicCache

from nora.tasks.example import Example

EXAMPLES = [
    Example("the film is a delight It was", (" terrible", " great"), (1,)),
    Example("A long walk by the river. Can we infer that?\n", ("Yes", "No", "Maybe"), (2,)),
    Example("Who wrote it?\n", ("Yes, of course it was the author himself", "No", "No, not at all"), (0,)),
    Example("  Blanks around  ", ("x", "answer with words"), (1,)),
    Example("word", ("s", "ing along the road", " wide"), (2,)),
]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(Path(__file__).resolve().parents[2] / "assets" / "opt_mini")


@pytest.fixture
def examples() -> list[Example]:
    return list(EXAMPLES)


def naive_score(model: Any, ids: list[int], option: int) -> torch.Tensor:
    """Mean log-probability of the last ``option`` ids: one sequence, one plain forward, no mask of ours."""
    tokens = torch.tensor([ids])
    if isinstance(model, PeftModel) and isinstance(model.active_peft_config, PrefixTuningConfig):
        cache = DynamicCache()
        for i, layer in enumerate(model.get_prompt(1).layers):
            cache.update(layer.keys, layer.values, i)
        length = cache.get_seq_length()
        logits = model.get_base_model()(
            input_ids=tokens,
            past_key_values=cache,
            attention_mask=torch.ones(1, length + len(ids), dtype=torch.long),
            position_ids=torch.arange(len(ids))[None],
        ).logits
    else:
        logits = model(input_ids=tokens).logits
    log_probs = torch.log_softmax(logits[0], dim=-1)
    return torch.stack([log_probs[i - 1, ids[i]] for i in range(len(ids) - option, len(ids))]).mean()


@pytest.fixture
def naive() -> Any:
    return naive_score

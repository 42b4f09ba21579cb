"""A true sentencepiece model of LLaMA's kind, read as the paper scale reads yahma/llama-7b-hf: from tokenizer.model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hub_twins.contents import llama, sentencepiece_of_mistral
from nora import tasks
from nora.tasks.example import Example
from nora.training.batches import encode_example

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("sst2", "cb", "rte", "boolq", "wsc", "multirc")
FEW_SHOT = (*CLASSES, "record", "squad")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pieces = sentencepiece_of_mistral()
    if pieces is None:
        pytest.skip("mistral-common is not installed: no true sentencepiece model of LLaMA's kind (make setup)")
    folder = tmp_path_factory.mktemp("llama")
    for name, data in llama(pieces).files.items():
        if not name.endswith(".safetensors"):
            (folder / name).write_bytes(data)
    assert not (folder / "tokenizer.json").exists()
    return AutoTokenizer.from_pretrained(folder)


def _rows(path: str) -> list[Any]:
    return [json.loads(line) for line in (ROOT / "data" / f"{path}.jsonl").read_text().splitlines()]


def _examples(name: str) -> list[Example]:
    task = tasks.load("superglue", name)
    return [task.build(row) for row in _rows(f"{name}/validation")[:40]]


def test_special_ids(tokenizer: Any) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 32000)
    assert tokenizer.pad_token_id is None, "as LLaMA's: the base's pad is id 0"
    assert tokenizer("Hello there")["input_ids"][:1] == [1] and tokenizer("x")["input_ids"][-1] != 2


def test_leading_blanks_and_newlines_are_kept_apart(tokenizer: Any) -> None:
    ids = [tuple(tokenizer(text)["input_ids"]) for text in ("a yes", "a  yes", "a\nyes", "a\n\nyes", "ayes")]
    assert len(set(ids)) == 5


@pytest.mark.parametrize("name", FEW_SHOT)
def test_every_prompt_of_a_task_comes_back(name: str, tokenizer: Any) -> None:
    """Prompt and each candidate, whose tokens are found at the end; classes differ in their scored tokens."""
    for example in _examples(name):
        encoded = encode_example(example, tokenizer, max_length=10**6)
        for candidate, ids in zip(example.candidates, encoded.sequences, strict=True):
            text = (example.prompt + candidate).lstrip().strip(" ")
            assert tokenizer.decode(ids, skip_special_tokens=True).lstrip(" ") == text
        if name in CLASSES:
            scored = [ids[-n:] for ids, n in zip(encoded.sequences, encoded.option_lengths, strict=True)]
            assert len({ids[0] for ids in scored}) == len(scored), "the first token tells them apart"


@pytest.mark.parametrize("name", ["commonsense", "gsm8k"])
def test_every_instruct_prompt_comes_back(name: str, tokenizer: Any) -> None:
    task = tasks.load("instruct", name)
    if name == "gsm8k":
        made = [task.testing(row, "gsm8k") for row in _rows("gsm8k/test")]
    else:
        made = [task.testing(row, one) for one in task.SETS for row in _rows(f"commonsense/{one}.test")]
    assert len(made) > 100
    for row in made:
        assert tokenizer.decode(tokenizer(row.question)["input_ids"], skip_special_tokens=True) == row.question

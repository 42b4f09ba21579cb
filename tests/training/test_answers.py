"""Batched answers against one prompt at a time with transformers' own generate; float64: all of them equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nora.training.generation import Decoding, answer, encode_prompts
from nora.verbs.machine import load_program

from test_instruct_batches import _model  # isort: skip


class _Ids:
    """A tokenizer of numbers: "5 17 8" ↔ [1, 5, 17, 8]."""

    eos_token_id = 2

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *map(int, text.split())]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


def _prompts(count: int) -> list[str]:
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 60, (count,), generator=draw).tolist()
    return [" ".join(str(int(i)) for i in torch.randint(3, 97, (n,), generator=draw)) for n in lengths]


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("beams", [1, 4])
def test_two_hundred_mixed_prompts_answer_as_each_does_alone(family: str, beams: int) -> None:
    model, prompts = _model(family), _prompts(200)
    decoding = Decoding(beams=beams, max_new_tokens=6, max_length=256, max_tokens=4096)
    ours = answer(model, prompts, _Ids(), decoding, pad_id=0)
    host = model.get_base_model()
    for prompt, given in zip(prompts, ours, strict=True):
        ids = torch.tensor([_Ids()(prompt)["input_ids"]])
        alone = host.generate(input_ids=ids, num_beams=beams, do_sample=False, max_new_tokens=6, eos_token_id=2,
                              pad_token_id=0)[0, ids.shape[1] :].tolist()  # fmt: skip
        alone = alone[: alone.index(2)] if 2 in alone else alone
        assert given == " ".join(map(str, alone))


def test_a_long_prompt_keeps_its_first_token_and_its_end() -> None:
    decoding = Decoding(beams=1, max_new_tokens=3, max_length=10)
    (ids,) = encode_prompts(["11 12 13 14 15 16 17 18 19"], _Ids(), decoding)
    assert ids == (1, 14, 15, 16, 17, 18, 19)


@pytest.mark.slow
def test_the_benchmark_lists_what_differs(checkout: Path) -> None:
    benchmark = load_program(checkout / "benchmarks" / "generate.py")
    result = benchmark.run(quick=True)
    assert [c["different"] for c in result["cases"] if c["dtype"] == "float64"] == [0, 0]
    for case in result["cases"]:
        assert case["different"] == len(case["differing"])
        assert all(d["alone"] != d["batched"] for d in case["differing"])
    assert "bfloat16  beam 4" in benchmark.table(result)

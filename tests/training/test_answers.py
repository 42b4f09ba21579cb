"""Batched answers against one prompt at a time with transformers' own generate; float64: all of them equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nora.training import generation
from nora.training.generation import Decoding, answer, beam_search, encode_prompts, greedy
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


def _columns(model: Any, seen: list[int]) -> Any:
    """Notes how many rows × columns each forward pass of the base reads."""

    def note(module: Any, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        seen.append(ids.numel())

    return model.get_base_model().base_model.register_forward_pre_hook(note, with_kwargs=True)


def test_a_prompt_is_read_once_for_all_its_beams() -> None:
    model, prompts, seen = _model("llama"), _prompts(8), []  # type: ignore[var-annotated]
    hook = _columns(model, seen)
    answer(model, prompts, _Ids(), Decoding(beams=4, max_new_tokens=2, max_length=256), pad_id=0)
    hook.remove()
    width = max(len(p.split()) + 1 for p in prompts)
    assert seen == [8 * (width - 1), 32, 32]


def test_a_prompt_of_one_token_has_beams_too() -> None:
    model = _model("llama")
    settings: dict[str, Any] = {"num_beams": 4, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    alone = model.get_base_model().generate(input_ids=torch.tensor([[1]]), max_new_tokens=5, **settings)
    expected = alone[0, 1:].tolist()
    found = beam_search(model, [[1]], Decoding(beams=4, max_new_tokens=5, max_length=64), stop=2, pad_id=0)
    assert found == [expected[: expected.index(2)] if 2 in expected else expected]


def test_answers_that_have_ended_leave_the_batch() -> None:
    """As many stop tokens as it takes for answers to end at different steps."""
    model, seen = _model("llama"), []  # type: ignore[var-annotated]
    prompts = [_Ids()(p)["input_ids"] for p in _prompts(16)]
    settings: Any = {"stop": list(range(2, 30)), "max_new_tokens": 12, "pad_id": 0}
    expected = [greedy(model, [p], **settings)[0] for p in prompts]
    hook = _columns(model, seen)
    assert greedy(model, prompts, **settings) == expected
    hook.remove()
    lasting = [[len(e) > step for e in expected].count(True) for step in range(max(map(len, expected)))]
    assert len(set(lasting)) > 3 and len(set(seen[1:])) > 2
    assert all(rows < 2 * going for rows, going in zip(seen[1:], lasting, strict=False))


def test_a_long_prompt_keeps_its_first_token_and_its_end() -> None:
    decoding = Decoding(beams=1, max_new_tokens=3, max_length=10)
    (ids,) = encode_prompts(["11 12 13 14 15 16 17 18 19"], _Ids(), decoding)
    assert ids == (1, 14, 15, 16, 17, 18, 19)


@pytest.fixture(scope="module")
def benchmark(checkout: Path) -> Any:
    return load_program(checkout / "benchmarks" / "generate.py")


def test_the_scores_behind_a_margin_are_those_of_one_plain_pass(benchmark: Any) -> None:
    model = _model("llama").get_base_model()
    tried = [(5,), (5, 6, 7), (5, 6, 8), (5, 9), (4, 4, 4, 4)]
    found = benchmark._scores(model, (1, 11, 12), tried)
    assert benchmark._scores(model, (1, 11, 12), [(5,)]) == {(5,): found[(5,)]}
    for tokens in tried:
        logits = model(input_ids=torch.tensor([[1, 11, 12, *tokens]])).logits[0].detach().log_softmax(dim=-1)
        expected = sum(float(logits[2 + n, token]) for n, token in enumerate(tokens))
        assert found[tokens] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_difference_that_is_no_rounding_lies_above_the_tolerance(
    beams: int, benchmark: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch at three times its positions: answers differ, by more than bfloat16 ever errs in a gap."""
    base = checkout / "assets" / "llama_mini"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    rows = benchmark._prompts(0, 4)
    plain = generation._step

    def astray(base: Any, ids: Any, positions: Any, *rest: Any) -> Any:
        return plain(base, ids, 3 * positions, *rest)

    monkeypatch.setattr(generation, "_step", astray)
    case = benchmark._case(model, AutoTokenizer.from_pretrained(base), rows, "bfloat16", beams)
    assert case["above"] > 0 and case["tolerance"] > 0


@pytest.mark.slow
def test_the_benchmark_lists_what_differs(benchmark: Any) -> None:
    result = benchmark.run(quick=True)
    assert [c["different"] for c in result["cases"] if c["dtype"] == "float64"] == [0, 0]
    for case in result["cases"]:
        assert case["different"] == len(case["differing"]) and case["above"] == 0
        assert all(d["alone"] != d["batched"] for d in case["differing"])
    assert "bfloat16  beam 4" in benchmark.table(result)

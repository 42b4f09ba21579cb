"""``protocol.eval_backend=vllm``: what is refused, and what vLLM would be given.

vLLM is not installed where these tests run. ``_StandIn`` is no vLLM: it takes the calls that its documentation
describes and answers with transformers, one prompt at a time.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nora.cli import main
from nora.config.spec import run_id
from nora.errors import UserError
from nora.kinds import compose_run
from nora.store.record import Record

Run = Callable[..., tuple[Record, bool]]
MODERN = ("protocol=llm_adapters_modern", "model=llama_smoke", "method=nora")
VLLM = "protocol.eval_backend=vllm"


class _SamplingParams:
    def __init__(self, *, temperature: float, max_tokens: int, stop_token_ids: list[int], detokenize: bool) -> None:
        assert temperature == 0.0 and not detokenize
        self.max_tokens, self.stop = max_tokens, stop_token_ids


class _StandIn:
    started: list[dict[str, Any]] = []

    def __init__(self, *, model: str, **settings: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings["dtype"]))
        self.started.append({**settings, "parameters": [n for n, _ in self.model.named_parameters() if "lora" in n]})

    def generate(self, prompts: list[dict[str, list[int]]], params: _SamplingParams, *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        answers = []
        for prompt in prompts:
            ids = torch.tensor([prompt["prompt_token_ids"]])
            tokens = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                max_new_tokens=params.max_tokens, eos_token_id=params.stop,
            )[0, ids.shape[1] :]  # fmt: skip
            answers.append(types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=tuple(tokens.tolist()))]))
        return answers


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[_StandIn]:
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = _StandIn, _SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(_StandIn, "started", [])
    return _StandIn


@pytest.mark.parametrize("merge", ["false", "true"])
def test_the_answers_are_those_of_transformers(merge: str, run: Run, tmp_path: Path, stand_in: type[_StandIn]) -> None:
    words = (*MODERN, f"protocol.merge={merge}", "measure=[zero_shot]")
    ours, _ = run(*words, task="commonsense", store=tmp_path)
    theirs, _ = run(*words, VLLM, task="commonsense", store=tmp_path)
    assert ours.id != theirs.id and theirs.spec["protocol"]["eval_backend"] == "vllm"
    assert theirs.result["files"] == ours.result["files"], "adapter and predictions, by their hashes"
    assert theirs.metrics == ours.metrics
    assert len(stand_in.started) == 2, "the untrained model and the trained one"
    for settings in stand_in.started:
        assert settings["dtype"] == "float32" and settings["skip_tokenizer_init"] and settings["parameters"] == []
        assert settings["max_model_len"] == theirs.spec["model"]["max_length"]


def test_missing_it_is_one_line_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as where it is not installed
    words = ["scale=smoke", "task=commonsense", *MODERN, VLLM, "exec.device=cpu", f"exec.results={tmp_path}"]
    assert main(["run", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nora: protocol.eval_backend: given vllm, which is not installed here")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, message",
    [
        (["protocol=llm_adapters"], "beams: given 4, required 1 with eval_backend=vllm"),
        (["protocol=llm_adapters_modern", "method=prefix"], "protocol.eval_backend: merges the adapter"),
        (["protocol=llm_adapters_modern", "protocol.eval_backend=tgi"], "protocol.eval_backend: given 'tgi'"),
    ],
)
def test_what_it_cannot_do_is_refused(words: list[str], message: str, checkout: Path) -> None:
    with pytest.raises(UserError) as caught:
        compose_run(checkout, ["task=commonsense", VLLM, *words])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_merging_a_prefix_is_refused_before_it_trains(checkout: Path) -> None:
    with pytest.raises(UserError, match="protocol.merge: merges the adapter into the weights"):
        compose_run(checkout, ["task=commonsense", "protocol=llm_adapters", "method=prefix"])


def test_left_out_the_id_is_the_one_of_before(checkout: Path) -> None:
    words = ["task=commonsense", "protocol=llm_adapters_modern", "model=llama_mini", "method=nora"]
    ids = [run_id(compose_run(checkout, [*words, *more])[0]) for more in ([], ["protocol.eval_backend=null"], [VLLM])]
    assert ids[0] == ids[1] != ids[2]

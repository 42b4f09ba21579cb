"""Out of memory (injected): a typed failure that says which micro-batch would fit; never a silently smaller batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nora.cli import main
from nora.errors import RunFailed
from nora.kinds.parts.sizing import answering_table, measure, training_table
from nora.store.record import Record
from nora.training import generation
from nora.training.objectives import ClassificationObjective, InstructObjective

from twins import with_lora  # isort: skip

Run = Callable[..., tuple[Record, bool]]
WORDS = ("protocol=llm_adapters", "model=llama_smoke", "method=lora")


def _raises(error: Exception, *, at_call: int = 1) -> Callable[..., Any]:
    calls = []

    def fail(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) >= at_call:
            raise error
        return _LOSS(*given, **named)

    return fail


_LOSS = InstructObjective.loss


def test_training_says_what_would_fit_and_goes_on_with_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(*WORDS, "exec.micro_batch_size=4", task="commonsense", store=tmp_path / "whole")
    full = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")
    monkeypatch.setattr(InstructObjective, "loss", _raises(full, at_call=2))
    with pytest.raises(RunFailed) as caught:
        run(*WORDS, "exec.checkpoint_every=1", task="commonsense", store=tmp_path / "b")
    said = str(caught.value)
    assert said.startswith("out of memory while training (CUDA out of memory. Tried to allocate 2.00 GiB.)\n")
    for micro in (1, 2, 4, 8):
        assert f"exec.micro_batch_size={micro}\n" in said.replace("  (too large here)", "")
    assert "exec.micro_batch_size=8  (too large here)" in said
    assert "the effective batch is never changed: it stays 8" in said
    monkeypatch.undo()
    record, _ = run(*WORDS, "exec.micro_batch_size=4", task="commonsense", store=tmp_path / "b")
    assert record.id == whole.id and record.run["resumed_at_step"] == 1


@pytest.mark.parametrize("beams, path", [(1, "greedy"), (4, "beam_search")])
def test_generation_says_how_many_tokens_at_once(
    beams: int, path: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, path, _raises(MemoryError()))
    with pytest.raises(RunFailed, match="^out of memory while generating answers\n") as caught:
        run(*WORDS, f"protocol.beams={beams}", "exec.generate_tokens=4000", task="commonsense", store=tmp_path)
    assert "exec.generate_tokens=4000  (too large here)" in str(caught.value)
    assert "exec.generate_tokens=500\n" in str(caught.value)


def test_few_shot_runs_say_it_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(ClassificationObjective, "loss", _raises(full))
    with pytest.raises(RunFailed, match="exec.micro_batch_size=4  .too large here."):
        run("method=prefix", store=tmp_path)


def test_another_error_of_the_run_keeps_its_own_words(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InstructObjective, "loss", _raises(RuntimeError("shapes cannot be multiplied")))
    with pytest.raises(RunFailed, match="shapes cannot be multiplied") as caught:
        run(*WORDS, task="commonsense", store=tmp_path)
    assert "micro-batch" not in str(caught.value)


def test_the_command_prints_the_table_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(InstructObjective, "loss", _raises(MemoryError()))
    words = ["scale=smoke", "task=commonsense", *WORDS, "exec.device=cpu", f"exec.results={tmp_path}"]
    assert main(["run", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("nora: out of memory while training\n") and "Traceback" not in said


def test_the_sizes_are_those_of_the_model() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = with_lora(LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sizes = measure(model, longest=100, precision="bf16")
    assert sizes.weights == 2 * sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert sizes.trained == 5 * 4 * trained
    assert sizes.per_text == 100 * 32 * 3 * 47
    assert sizes.per_cached_token == 2 * 3 * 2 * 8 * 2
    # With micro-batch 4 tried of a batch of 6: every power of two, and what was tried.
    rows = training_table(sizes, 6, 4).splitlines()
    assert [row.split()[0] for row in rows[1:-1]] == ["1", "2", "4"] and rows[3].endswith("(too large here)")
    assert [row.split()[0] for row in training_table(sizes, 6, None).splitlines()[1:-1]] == ["1", "2", "4", "6"]
    assert [row.split()[0] for row in answering_table(sizes, tried=8).splitlines()[1:-1]] == ["1", "2", "4", "8"]

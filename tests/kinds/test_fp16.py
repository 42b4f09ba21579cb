"""Runs in fp16 with a scaled loss, at smoke scale on the CPU: what the record says, and resuming is exact."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nora.config.spec import run_id
from nora.errors import RunFailed
from nora.files import canonical_json
from nora.kinds import compose_run
from nora.kinds.parts.recipe import Update

WORDS = ("protocol=llm_adapters", "protocol.precision=fp16", "model=llama_smoke", "method=nora_plus",
         "method.dropout=0.1", "task.num_test=1", "protocol.epochs=3", "exec.checkpoint_every=1")  # fmt: skip
"""Six steps."""


class _Killed(Exception):
    pass


def _kill(update: Update) -> None:
    if (update.phase, update.step) == ("train", 4):
        raise _Killed


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_run_in_fp16_counts_what_it_skips_and_resumes_exactly(
    dtype: str, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*WORDS, f"model.dtype={dtype}")
    plain, _ = run(*words, task="commonsense", store=tmp_path / "plain")
    assert plain.metrics["skipped_steps"] == 0 and plain.metrics["loss_scale"] == 65536
    assert plain.metrics["quirks"] == []
    # A scale that overflows float16 in the backward pass of the first steps.
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**25))
    whole, _ = run(*words, task="commonsense", store=tmp_path / "whole")
    assert whole.status == "done" and 0 < whole.metrics["skipped_steps"] < 6
    assert whole.metrics["loss_scale"] == 2.0 ** (25 - whole.metrics["skipped_steps"])
    with pytest.raises(RunFailed, match="_Killed"):
        run(*words, task="commonsense", store=tmp_path / "killed", show=_kill)
    record, _ = run(*words, task="commonsense", store=tmp_path / "killed")
    assert record.run["resumed_at_step"] == 3 and canonical_json(record.result) == canonical_json(whole.result)


def test_fp16_trains_as_fp32_does(run: Callable[..., Any], tmp_path: Path) -> None:
    half, _ = run(*WORDS, "method.dropout=0.0", task="commonsense", store=tmp_path)
    full, _ = run(*WORDS, "method.dropout=0.0", "protocol.precision=fp32", task="commonsense", store=tmp_path)
    assert "skipped_steps" not in full.metrics and half.id != full.id
    for ours, theirs in zip(half.metrics["epochs"], full.metrics["epochs"], strict=True):
        for loss in ("loss", "train_loss"):
            assert ours[loss] == pytest.approx(theirs[loss], rel=2e-3)
        assert ours["train_loss"] != theirs["train_loss"]  # dev's few rows may round to one sum


@pytest.mark.gpu
def test_a_gpu_trains_in_fp16_as_the_cpu_does(run: Callable[..., Any], tmp_path: Path) -> None:
    words = (*WORDS, "method.dropout=0.0", "model.dtype=float16")
    here, _ = run(*words, task="commonsense", store=tmp_path / "cpu")
    there, _ = run(*words, "exec.device=cuda", task="commonsense", store=tmp_path / "gpu")
    assert there.status == "done" and there.metrics["skipped_steps"] == 0
    for ours, theirs in zip(there.metrics["epochs"], here.metrics["epochs"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=5e-3)


def test_the_ids_of_before_stay(checkout: Path) -> None:
    """An id of the committed Table 4."""
    words = ["scale=mini", "task=commonsense", "protocol=llm_adapters", "model=llama_mini", "method=lora",
             "method.rank=8", "method.alpha=16", "method.dropout=0.05", "protocol.lr=0.01", "measure=[zero_shot]",
             "seed=0"]  # fmt: skip
    assert run_id(compose_run(checkout, words)[0]) == "dd605b92c6069ea3"

"""Instruct runs on bad input: shut or absent models, wrong row counts, answers that are none, a non-finite loss."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from transformers import AutoTokenizer

from nora import tasks
from nora.config.schema import TaskSpec
from nora.errors import RunFailed, UserError
from nora.execution import prefetch
from nora.kinds import FinetuneSpec, compose_run
from nora.kinds.parts import bases
from nora.kinds.parts.rows import Rows, load_instruct_rows
from nora.store.record import Record
from nora.store.runs import Store
from nora.tasks.instruct import commonsense
from nora.training.objectives import InstructObjective

Run = Callable[..., tuple[Record, bool]]
WORDS = ("protocol=llm_adapters", "model=llama_smoke")
LLAMA2 = "meta-llama/Llama-2-7b-hf"


def _spec(checkout: Path, *words: str) -> FinetuneSpec:
    spec, _, _ = compose_run(checkout, ["scale=paper", "task=commonsense", "protocol=llm_adapters", *words])
    assert isinstance(spec, FinetuneSpec)
    return spec


def test_a_gated_model_names_its_licence_page_and_the_token(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = httpx.Request("GET", f"https://huggingface.co/{LLAMA2}")

    def shut(repo: str, patterns: Any, pinned: Any) -> dict[str, Any]:
        raise GatedRepoError("403 Client Error", response=httpx.Response(403, request=request))

    monkeypatch.setattr(prefetch, "fetched", shut)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "revisions.lock").write_text("{}")
    spec, _, _ = compose_run(checkout, ["scale=paper", "model=llama2_7b", "task=cb", "task.source=slice"])
    with pytest.raises(UserError) as caught:
        prefetch.prefetch([spec], tmp_path, dry_run=False)
    said = str(caught.value)
    assert said.startswith(f"{LLAMA2}: gated; accept its licence at https://huggingface.co/{LLAMA2}, then set HF_TOKEN")


def test_a_model_that_is_not_here_says_how_it_gets_here(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*given: Any, **named: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nCheck your internet connection")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", absent)
    model = replace(_spec(checkout, "model=llama2_7b").model, revision="0" * 40)
    with pytest.raises(RunFailed) as caught:
        bases.load_base(model, checkout, torch.device("cpu"))
    said = str(caught.value)
    assert f"https://huggingface.co/{LLAMA2}" in said and "HF_TOKEN" in said and "`nora prefetch`" in said
    assert "\n" not in said


def _hub_rows(checkout: Path, folder: Path, name: str, rows: int | None) -> Rows:
    spec: TaskSpec = replace(_spec(checkout).task, revision="c0ffee")
    if rows is not None:
        path = folder / "data" / "hub" / "c0ffee" / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([{}] * rows))
    return load_instruct_rows(spec, tasks.load("instruct", "commonsense"), folder, seed=0)


def test_a_download_of_another_size_is_named_with_its_hash(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"\(sha256 [0-9a-f]{64}\): has 3 rows, the protocol expects 170420"):
        _hub_rows(checkout, tmp_path, commonsense.TRAIN_FILE, 3)


def test_a_download_that_is_not_there_is_named(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="commonsense_170k.json: missing; run `nora prefetch`"):
        _hub_rows(checkout, tmp_path, "", None)


def test_a_data_set_of_another_size_is_named(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: [{}] * 5)
    spec = replace(_spec(checkout, "task=gsm8k", "protocol=metamath").task, revision="a+b")
    with pytest.raises(RunFailed, match="meta-math/MetaMathQA/train: has 5 rows, the protocol expects 395"):
        load_instruct_rows(spec, tasks.load("instruct", "gsm8k"), tmp_path, seed=0)


def test_answers_that_match_no_pattern_are_wrong_and_counted_by_set(run: Run, tmp_path: Path) -> None:
    record, _ = run(*WORDS, "method=lora", task="commonsense", store=tmp_path)
    path = Store(tmp_path).run_dir("finetune", record.id) / record.result["files"]["predictions"]["name"]
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    none = Counter(row["set"] for row in rows if row["prediction"] == "")
    assert sum(none.values()) > 0, "a base of random weights: something matches nothing"
    for name, scores in record.metrics["test"]["sets"].items():
        assert scores["unanswered"] == none[name] and scores["accuracy"] <= 1 - none[name] / scores["n"]


@pytest.mark.parametrize("bad_call, step", [(1, 0), (3, 2)])
def test_a_loss_that_is_not_finite_is_a_diverged_record(
    bad_call: int, step: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a failure: an unstable LoRA is a result (paper, Table 4)."""
    whole, calls = InstructObjective.loss, []

    def loss(self: InstructObjective, *given: Any) -> Any:
        calls.append(1)
        return whole(self, *given) * (float("nan") if len(calls) == bad_call else 1.0)

    monkeypatch.setattr(InstructObjective, "loss", loss)
    record, made = run(*WORDS, "method=lora", task="commonsense", store=tmp_path)
    assert made and record.status == "diverged" and record.result["diverged"] == {"step": step, "tensor": "the loss"}
    assert "test" not in record.metrics and record.result["files"] == {} and record.result["proof"]["passed"]

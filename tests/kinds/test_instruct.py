"""Runs by the instruct protocols at smoke scale: each difference does what it says, and resuming is exact."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from nora import tasks
from nora.errors import RunFailed, UserError
from nora.files import canonical_json
from nora.kinds import compose_run
from nora.kinds.parts.recipe import Update
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.verify import verify_record
from nora.tables.methods import load_table

Run = Callable[..., tuple[Record, bool]]
COMMONSENSE = ("task.num_train=16", "method.dropout=0.1", "protocol=llm_adapters", "model=llama_smoke")


class _Killed(Exception):
    pass


def _kill(phase: str, step: int) -> Callable[[Update], None]:
    def show(update: Update) -> None:
        if (update.phase, update.step) == (phase, step):
            raise _Killed

    return show


def test_a_commonsense_run_scores_every_set(run: Run, tmp_path: Path) -> None:
    record, _ = run(*COMMONSENSE, "method=nora_plus", "measure=[zero_shot]", task="commonsense", store=tmp_path)
    test = record.metrics["test"]
    assert set(test["sets"]) == set(tasks.load("instruct", "commonsense").SETS)
    assert all(scores["n"] == 2 for scores in test["sets"].values()) and test["n"] == 16
    assert test["mean_accuracy"] == pytest.approx(sum(s["accuracy"] for s in test["sets"].values()) / 8)
    assert record.result["proof"]["init"] == "nystrom" and record.metrics["quirks"] == []
    assert record.metrics["zero_shot"]["n"] == 16 and 0 <= record.metrics["majority"] <= 1
    # Evaluated every two of four steps, the kept adapter is that of the lowest dev loss.
    losses = [entry["loss"] for entry in record.metrics["epochs"]]
    assert len(losses) == 2 and record.metrics["dev"]["loss"] == min(losses)
    store = Store(tmp_path)
    assert verify_record(store, record) == []
    path = store.run_dir("finetune", record.id) / record.result["files"]["predictions"]["name"]
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert len(rows) == 16 and set(rows[0]) == {"set", "prediction", "answer", "text"}


@pytest.mark.parametrize("phase, step", [("train", 1), ("train", 3), ("test", 0)])
def test_killed_and_identical(phase: str, step: int, run: Run, tmp_path: Path) -> None:
    words = (*COMMONSENSE, "method=nora_plus")
    whole, _ = run(*words, task="commonsense", store=tmp_path / "whole")
    with pytest.raises(RunFailed, match="_Killed"):
        run(*words, "exec.checkpoint_every=1", task="commonsense", store=tmp_path / "b", show=_kill(phase, step))
    record, _ = run(*words, "exec.checkpoint_every=1", task="commonsense", store=tmp_path / "b")
    assert record.run["attempt"] == 2
    assert canonical_json(record.result) == canonical_json(whole.result)


def test_the_released_code_starts_from_kaiming_and_says_so(run: Run, tmp_path: Path) -> None:
    """With the sketch lost a declared NoRA trains exactly as LoRA does; the proof is of Kaiming's start."""
    released = [w.replace("llm_adapters", "llm_adapters_released") for w in COMMONSENSE]
    nora, _ = run(*released, "method=nora", task="commonsense", store=tmp_path)
    lora, _ = run(*released, "method=lora", task="commonsense", store=tmp_path)
    assert nora.result["proof"]["init"] == "kaiming" and nora.result["proof"]["passed"]
    assert (
        "the start is Kaiming's" in nora.metrics["quirks"][0] and "the start is Kaiming's" not in lora.metrics["quirks"]
    )
    assert nora.result["files"]["adapter"] == lora.result["files"]["adapter"]
    assert nora.spec["method"]["init"] == "nystrom", "what was declared stays in the spec"


@pytest.mark.parametrize("split", ["exec.micro_batch_size=4", "exec.data_parallel=true"])
def test_what_preconditions_every_part_of_a_batch_is_not_split(split: str, checkout: Path) -> None:
    words = ["scale=smoke", "model=llama_smoke", "task=commonsense", "protocol=llm_adapters_released", split]
    with pytest.raises(UserError, match="required null: llm_adapters_released preconditions every part of a batch"):
        compose_run(checkout, [*words, "method=nora_plus"])
    compose_run(checkout, [*words, "method=nora"])


def test_modern_learns_the_answer_alone(run: Run, tmp_path: Path) -> None:
    text, _ = run(*COMMONSENSE, "method=lora", task="commonsense", store=tmp_path)
    modern = [w.replace("llm_adapters", "llm_adapters_modern") for w in COMMONSENSE]
    answer, _ = run(*modern, "method=lora", task="commonsense", store=tmp_path)
    assert answer.metrics["tokens"]["train"] == text.metrics["tokens"]["train"]
    assert text.metrics["tokens"]["scored"] == text.metrics["tokens"]["train"] - 16, "all but each text's first token"
    assert answer.metrics["tokens"]["scored"] < 0.2 * text.metrics["tokens"]["scored"]


def test_math_answers_dev_and_keeps_the_last_adapter(run: Run, tmp_path: Path) -> None:
    record, _ = run(
        "protocol=metamath", "model=gemma_smoke", "method=pissa", "method.rank=4", task="gsm8k", store=tmp_path
    )
    assert record.metrics["dev"]["n"] == 4 and record.metrics["test"]["n"] == 4
    assert {"mean_accuracy", "loss", "gold_nll"} <= set(record.metrics["dev"])
    assert record.metrics["epochs"][-1]["loss"] == record.metrics["dev"]["loss"]


def test_a_cut_answer_is_counted_by_set(run: Run, tmp_path: Path) -> None:
    record, _ = run(*COMMONSENSE, "method=lora", "protocol.cutoff=170", task="commonsense", store=tmp_path)
    assert sum(record.metrics["cut_answers"].values()) > 0
    assert set(record.metrics["cut_answers"]) <= set(tasks.load("instruct", "commonsense").SETS)


def test_rows_whose_prompt_reaches_the_cut_off_carry_no_loss_and_are_counted(run: Run, tmp_path: Path) -> None:
    modern = [w.replace("llm_adapters", "llm_adapters_modern") for w in COMMONSENSE]
    record, _ = run(*modern, "method=lora", "protocol.cutoff=230", task="commonsense", store=tmp_path)
    lost = record.metrics["lost_answers"]
    assert 0 < sum(lost.values()) < record.metrics["rows"]["train"]
    assert all(record.metrics["cut_answers"][name] >= n for name, n in lost.items())


def test_a_cut_off_that_leaves_nothing_to_learn_is_refused(run: Run, tmp_path: Path) -> None:
    modern = [w.replace("llm_adapters", "llm_adapters_modern") for w in COMMONSENSE]
    with pytest.raises(RunFailed, match="protocol.cutoff: given 20, no answer token"):
        run(*modern, "method=lora", "protocol.cutoff=20", task="commonsense", store=tmp_path)


@pytest.mark.parametrize(
    "model, rank, parameters",
    [
        ("llama_7b", 32, 56_098_816),
        ("llama2_7b", 32, 56_098_816),
        ("gemma_7b", 32, 100_007_936),
        ("gemma_7b", 64, 200_015_872),
    ],
)
def test_parameter_counts_are_the_papers(model: str, rank: int, parameters: int, checkout: Path) -> None:
    """On the meta device: no weight is made. Paper, Sections 5.3 and 5.4."""
    content: dict[str, Any] = yaml.safe_load(
        (checkout / "conf" / "model" / f"{model}.yaml").read_text(encoding="utf-8")
    )
    fields = dict(content["architecture"])
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
        adapted = get_peft_model(base, LoraConfig(r=rank, lora_alpha=64, target_modules=content["targets"]))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize("table, runs", [("table4", 2 * 4 * 3), ("table9", 3 + 1 + 9 + 3 + 9)])
def test_the_plan_at_paper_scale(table: str, runs: int, checkout: Path) -> None:
    cells = load_table(checkout, table, ["scale=paper"]).cells({})
    assert len(cells) == runs and len({c.id for c in cells}) == runs and not any(c.waits_for for c in cells)
    if table == "table4":
        xi = {(c.column, c.row): c.spec.method.xi for c in cells if c.spec is not None}
        assert xi["llama_7b", "nora_plus"] == 0.02 and xi["llama2_7b", "nora_plus"] == 0.1
    else:
        (pissa,) = {(c.spec.method.rank, c.spec.protocol.epochs) for c in cells if c.row == "pissa" and c.spec}
        assert pissa == (64, 1)


@pytest.mark.parametrize(
    "words, message",
    [
        (["protocol.warmup_ratio=0.1"], "give either warmup_steps or warmup_ratio"),
        (["protocol.beams=0"], "protocol.beams: given 0, input should be greater than or equal to 1"),
        (["+protocol.share_prompt=true"], "protocol.share_prompt: unknown key, allowed here: version, lr"),
        (["protocol.name=llm_adapter"], "did you mean llm_adapters?"),
    ],
)
def test_a_wrong_protocol_is_one_clear_line(words: list[str], message: str, checkout: Path) -> None:
    with pytest.raises(UserError, match="protocol") as caught:
        compose_run(checkout, ["task=commonsense", "protocol=llm_adapters", *words])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_rows_are_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task.num_train: 908 rows are needed, data/commonsense has 448"):
        run("protocol=llm_adapters", "model=llama_smoke", "task.num_train=900", task="commonsense", store=tmp_path)

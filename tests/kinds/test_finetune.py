"""Real runs at smoke scale: each method, repeatability, resuming after a kill, wrong inputs, the W&B copy."""

from __future__ import annotations

import gzip
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from nora import kinds
from nora.config.pins import Pins
from nora.errors import RunFailed, UserError
from nora.files import canonical_json, sha256_file
from nora.kinds import FinetuneSpec, compose_run, few_shot
from nora.kinds.parts import bases
from nora.kinds.parts.recipe import Update
from nora.store.record import Record
from nora.store.runs import Store, read_json_lines
from nora.store.states import run_state
from nora.training import objectives

METHODS = ("lora", "lora_p", "pissa", "olora", "nora", "nora_plus", "prefix")
Run = Callable[..., tuple[Record, bool]]


def _result(record: Record) -> str:
    return canonical_json(record.result)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_scores_and_proves_its_start(method: str, run: Run, tmp_path: Path) -> None:
    record, made = run(f"method={method}", "measure=[spectrum,zero_shot]")
    assert made and record.status == "done"
    metrics, proof = record.metrics, record.result["proof"]
    assert proof["passed"] and not proof["problems"]
    assert metrics["steps"] == 4 and metrics["rows"] == {"train": 8, "dev": 8, "test": 8}
    assert metrics["dev"] == min(metrics["epochs"], key=lambda e: e["loss"])
    assert metrics["test"]["loss"] != metrics["zero_shot"]["loss"], "training moved something"
    # opt_smoke: 2 layers of width 32; rank 8 on q and v, or 5 vectors of keys and values
    assert metrics["trainable_parameters"] == (2 * 2 * 5 * 32 if method == "prefix" else 2 * 2 * 8 * (32 + 32))
    assert len(proof["modules"]) == (0 if method == "prefix" else 4)
    assert ("spectrum" in metrics) == (method != "prefix")
    store = Store(tmp_path / "results")
    read = store.read("finetune", record.id)
    assert read is not None and _result(read) == _result(record)
    journal = read_json_lines(store.attempts("finetune", record.id)[0].journal)
    assert [line["step"] for line in journal if line["phase"] == "train"] == [1, 2, 3, 4]


def test_predictions_score_what_the_record_says(run: Run, tmp_path: Path) -> None:
    record, _ = run("method=lora", "exec.keep_adapter=true")
    folder = Store(tmp_path / "results").run_dir("finetune", record.id)
    file = folder / record.result["files"]["predictions"]["name"]
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    assert len(rows) == 8
    assert record.metrics["test"]["accuracy"] == sum(r["prediction"] in r["correct"] for r in rows) / 8
    assert all(r["prediction"] == max(range(3), key=r["scores"].__getitem__) for r in rows)
    nll = -sum(r["scores"][r["correct"][0]] for r in rows) / 8
    assert record.metrics["test"]["gold_nll"] == pytest.approx(nll, rel=1e-5)
    adapter = folder / record.result["files"]["adapter"]["name"]
    assert sha256_file(adapter) == record.result["files"]["adapter"]["sha256"]


def test_the_same_run_twice_does_nothing_the_second_time(run: Run, tmp_path: Path) -> None:
    first, made = run("method=nora")
    again, made_again = run("method=nora", "exec.keep_adapter=true")
    assert (made, made_again) == (True, False) and _result(first) == _result(again)
    assert len(Store(tmp_path / "results").attempts("finetune", first.id)) == 1


def test_two_fresh_stores_give_identical_results(run: Run, tmp_path: Path) -> None:
    """Whatever exec says: what is kept, logged, checkpointed or drawn before is not in the result."""
    one, _ = run("method=nora_plus", store=tmp_path / "a")
    torch.manual_seed(123)
    other, _ = run("method=nora_plus", "exec.keep_adapter=true", "exec.checkpoint_every=1", store=tmp_path / "b")
    assert _result(one) == _result(other)
    seed, _ = run("method=nora_plus", "seed=1", store=tmp_path / "a")
    assert _result(seed) != _result(one)


class _Killed(Exception):
    pass


def _kill_at(step: int) -> Callable[[Update], None]:
    def show(update: Update) -> None:
        if update.phase == "train" and update.step == step:
            raise _Killed(f"at step {step}")

    return show


@pytest.mark.parametrize("method", ["nora_plus", "prefix"])
def test_a_killed_run_resumes_to_the_identical_result(method: str, run: Run, tmp_path: Path) -> None:
    """Killed after k of 4 steps (k = 2 ends an epoch, 1 and 3 are inside one), with dropout 0.1 in the model."""
    whole, _ = run(f"method={method}", store=tmp_path / "whole")
    for k in (1, 2, 3, 4):
        target = tmp_path / f"killed at {k}"
        with pytest.raises(RunFailed, match="_Killed"):
            run(f"method={method}", "exec.checkpoint_every=1", store=target, show=_kill_at(k))
        assert run_state(Store(target), "finetune", whole.id).state == "failed"
        record, made = run(f"method={method}", "exec.checkpoint_every=1", store=target)
        # The report comes before the checkpoint of its step.
        assert made and record.run["resumed_at_step"] == (k - 1 or None)
        assert record.run["attempt"] == 2
        assert _result(record) == _result(whole)


def test_steps_read_together_are_the_same_run_killed_or_not(run: Run, tmp_path: Path) -> None:
    """Two of 4 steps at a time, a checkpoint with each pair: a run killed at step 4 goes on from 2."""
    words = ("method=nora_plus", "exec.read_every=4", "exec.checkpoint_every=2")
    alone, _ = run("method=nora_plus", store=tmp_path / "alone")
    whole, _ = run(*words, store=tmp_path / "whole")
    with pytest.raises(RunFailed, match="_Killed"):
        run(*words, store=tmp_path / "killed", show=_kill_at(4))
    record, _ = run(*words, store=tmp_path / "killed")
    assert record.run["resumed_at_step"] == 2 and _result(record) == _result(whole)
    for one, other in zip(whole.metrics["epochs"], alone.metrics["epochs"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_damaged_checkpoint_falls_back_to_the_generation_before(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, _ = run("method=nora_plus", store=tmp_path / "whole")
    with pytest.raises(RunFailed):
        run("method=nora_plus", "exec.checkpoint_every=1", show=_kill_at(4))
    (attempt,) = Store(tmp_path / "results").attempts("finetune", whole.id)
    files = sorted(attempt.path.glob("step-*.safetensors"))
    assert [f.name[:13] for f in files] == ["step-00000002", "step-00000003"]
    data = bytearray(files[-1].read_bytes())
    data[-1] ^= 1
    files[-1].write_bytes(bytes(data))
    record, _ = run("method=nora_plus", "exec.checkpoint_every=1")
    assert record.run["resumed_at_step"] == 2 and _result(record) == _result(whole)
    assert "damaged (not what its name says): checkpoint left out" in caplog.text


def test_a_damaged_record_is_repeated(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = run("method=lora")
    path = Store(tmp_path / "results").record_path("finetune", first.id)
    path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": 1'))
    again, made = run("method=lora")
    assert made and _result(again) == _result(first) and "the run is repeated" in caplog.text


def test_a_run_whose_loss_is_not_finite_has_a_record_that_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = objectives.ClassificationObjective.loss
    calls = iter(range(99))

    def loss(self: Any, model: Any, indices: Any) -> Any:
        value = original(self, model, indices)
        return value * float("nan") if next(calls) == 2 else value

    monkeypatch.setattr(objectives.ClassificationObjective, "loss", loss)
    record, made = run("method=lora")
    assert made and record.status == "diverged"
    assert record.result["diverged"] == {"step": 2, "tensor": "the loss"}
    assert "test" not in record.metrics and len(record.metrics["epochs"]) == 1
    state = run_state(Store(tmp_path / "results"), "finetune", record.id)
    assert (state.state, state.reason) == ("diverged", "step 2, the loss")


def test_a_failed_proof_stops_the_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sketch is written, then PEFT's own A comes back: nothing in the output shows it, the proof does."""
    from nora.adapters import lora_layers
    from nora.kinds.parts import bases

    original = bases.initialize_

    def forgetful(model: Any, *args: Any, **kwargs: Any) -> Any:
        kept = [layer.A.detach().clone() for layer in lora_layers(model)]
        start = original(model, *args, **kwargs)
        for layer, A in zip(lora_layers(model), kept, strict=True):
            layer.A.data.copy_(A)
        return start

    monkeypatch.setattr(bases, "initialize_", forgetful)
    with pytest.raises(RunFailed, match="the init proof failed: .*differ from nystrom"):
        run("method=nora")
    (state,) = {p.parent.parent.name for p in (tmp_path / "results").rglob("failed.json")}
    assert state == "attempts"


def test_the_init_does_not_change_the_data_order(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    orders: dict[str, list[list[int]]] = {}

    def spy(model: Any, *args: Any, order: Callable[[int], torch.Tensor], **kwargs: Any) -> None:
        orders[current] = [order(epoch).tolist() for epoch in range(3)]
        raise _Killed

    monkeypatch.setattr("nora.kinds.parts.recipe.train", spy)
    for current in ("lora", "nora", "prefix", "seed=1"):
        override = [current] if "=" in current else [f"method={current}"]
        with pytest.raises(RunFailed):
            run(*override)
    assert orders["lora"] == orders["nora"] == orders["prefix"] != orders["seed=1"]
    assert orders["lora"][0] != orders["lora"][1], "each epoch has its own order"
    assert sorted(orders["lora"][0]) == list(range(8))


def test_rows_that_are_not_those_of_the_spec_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Pins.apply

    def other(self: Any, plain: dict[str, Any]) -> dict[str, Any]:
        plain = original(self, plain)
        files = {name: "0" * 64 for name in plain["task"]["files"]}
        return {**plain, "task": {**plain["task"], "files": files}}

    monkeypatch.setattr(Pins, "apply", other)
    with pytest.raises(RunFailed, match="train.jsonl: has SHA-256 75d9.*, its yaml or manifest says 0000"):
        run("method=lora")


def test_a_target_that_matches_nothing_is_named(run: Run) -> None:
    with pytest.raises(UserError, match="model.targets: given nothing_proj, did you mean .* opt_smoke has q_proj"):
        run("method=lora", "model.targets=[q_proj,nothing_proj]")


def test_truncation_is_counted_in_the_record(run: Run) -> None:
    whole, _ = run("method=lora")
    cut, _ = run("method=lora", "model.max_length=64")
    assert whole.metrics["truncated_tokens"] == 0 < cut.metrics["truncated_tokens"]


def test_a_cuda_device_that_is_not_there_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunFailed, match="no CUDA device is visible"):
        run("method=lora", "exec.device=cuda")


class _FakeRun:
    def __init__(self, log: list[Any], broken: bool) -> None:
        self.calls, self.broken, self.summary = log, broken, {}

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls.append((step, values))
        if self.broken:
            raise ConnectionError("the network is gone")

    def finish(self) -> None:
        self.calls.append("finish")


def _fake_wandb(monkeypatch: pytest.MonkeyPatch, *, init: Any) -> None:
    fake = SimpleNamespace(init=init, Settings=lambda **kw: kw, api=SimpleNamespace(api_key=None))
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["no start", "no log", "not installed"])
def test_a_mirror_that_fails_costs_one_warning_and_no_run(
    way: str, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    calls: list[Any] = []

    def init(**kwargs: Any) -> _FakeRun:
        if way == "no start":
            raise TimeoutError("no answer")
        return _FakeRun(calls, broken=True)

    _fake_wandb(monkeypatch, init=init)
    if way == "not installed":
        monkeypatch.setitem(sys.modules, "wandb", None)
    plain, _ = run("method=lora", store=tmp_path / "plain")
    assert not calls
    with caplog.at_level(logging.WARNING):
        record, _ = run("method=lora", "exec.wandb=offline")
    assert _result(record) == _result(plain)
    warnings = [r for r in caplog.records if "W&B" in r.getMessage()]
    assert len(warnings) == 1
    assert len(calls) == (1 if way == "no log" else 0)


def test_the_mirror_gets_the_runs_numbers_under_the_runs_id(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []
    given: dict[str, Any] = {}

    def init(**kwargs: Any) -> _FakeRun:
        given.update(kwargs)
        return _FakeRun(calls, broken=False)

    _fake_wandb(monkeypatch, init=init)
    record, _ = run("method=nora", "exec.wandb=online")
    assert given["id"] == record.id and given["mode"] == "offline", "online without a key logs offline"
    assert "no API key" in caplog.text
    assert given["config"] == record.spec and {"nora", "cb", "finetune"} <= set(given["tags"])
    assert [c[0] for c in calls if c != "finish"] == [1, 2, 3, 4] and calls[-1] == "finish"


def test_a_kind_is_a_file(checkout: Path) -> None:
    spec, _, _ = compose_run(checkout, ["scale=smoke", "task=cb"])
    assert kinds.of(spec) is few_shot


def test_each_step_has_dropout_masks_of_its_own() -> None:
    from nora.kinds.parts.recipe import seed_dropout

    masks = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        seed_dropout(seed, step)
        masks.append(torch.rand(8))
    assert torch.equal(masks[0], masks[3])
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("method, parameters", [("nora", 1_572_864), ("prefix", 491_520)])
def test_opt_1_3b_trains_the_papers_number_of_parameters(method: str, parameters: int, checkout: Path) -> None:
    """On the meta device, from the files that a paper-scale run is composed of."""
    spec, _, _ = compose_run(checkout, ["scale=paper", "task=sst2", f"method={method}", "model.weights=random"])
    assert isinstance(spec, FinetuneSpec) and spec.model.name == "opt_1.3b"
    fields = dict(spec.model.architecture or {})
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
        base.requires_grad_(False)
        adapted = get_peft_model(base, bases.peft_config(spec.method, spec.model.targets))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == parameters


def test_what_is_scored_shares_the_prompt_and_nothing_changes(run: Run, tmp_path: Path) -> None:
    """In training a shared prompt has other dropout masks; where nothing is trained it is the same numbers."""
    words = ("method=nora", "protocol.share_prompt=false")
    apart, _ = run(*words, store=tmp_path / "apart")
    shared, _ = run(*words, "protocol.share_when_scoring=true", store=tmp_path / "shared")
    assert shared.id != apart.id
    for metrics in (apart.metrics, shared.metrics):
        assert metrics["steps"] == 4
    for one, other in zip(
        [*apart.metrics["epochs"], apart.metrics["test"]],
        [*shared.metrics["epochs"], shared.metrics["test"]],
        strict=True,
    ):
        assert {k: pytest.approx(v, rel=1e-4) for k, v in one.items()} == other


def test_a_float32_base_that_trains_in_bf16_is_scored_in_bf16(run: Run, tmp_path: Path) -> None:
    """At float32's speed the evaluations would be most of a run; a base that is kept in bf16 is scored as it is."""
    plain, _ = run("method=nora", store=tmp_path / "a")
    half, _ = run("method=nora", "protocol.precision=bf16", "measure=[zero_shot]", store=tmp_path / "b")
    same, _ = run("method=nora", "measure=[zero_shot]", store=tmp_path / "c")
    assert half.metrics["zero_shot"]["loss"] != same.metrics["zero_shot"]["loss"]
    assert half.metrics["zero_shot"]["loss"] == pytest.approx(same.metrics["zero_shot"]["loss"], rel=0.02)
    assert plain.metrics["test"] == same.metrics["test"]


PUBLIC = {
    "opt_125m": 125_239_296, "opt_350m": 331_196_416, "smollm2_135m": 134_515_008, "smollm2_360m": 361_821_120,
    "qwen3_0.6b": 596_049_920, "gemma3_270m": 268_098_176,
}  # fmt: skip
"""Parameters of the files on the Hub, as their pages say."""


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_base_has_the_parameters_of_its_files_and_is_planned_at_small_scale(name: str, checkout: Path) -> None:
    spec, _, _ = compose_run(checkout, ["scale=small", "task=sst2", f"model={name}"])
    assert isinstance(spec, FinetuneSpec) and spec.model.source == "hub"
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(spec.model.architecture or {})))
    assert sum(p.numel() for p in made.parameters()) == PUBLIC[name]
    names = {module.rpartition(".")[2] for module, _ in made.named_modules()}
    assert set(spec.model.targets) <= names


@pytest.mark.parametrize("name", ["qwen3_0.6b", "gemma3_270m"])
def test_a_public_family_trains_at_a_tiny_shape(name: str, run: Run) -> None:
    """The packed rows are compared with the model's own forward before the first step; Gemma 3's window is local."""
    tiny = {
        "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 4096, "head_dim": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    words = [f"model.architecture.{key}={value}" for key, value in tiny.items()]
    special = [f"~model.architecture.{key}" for key in ("pad_token_id", "bos_token_id", "eos_token_id")]
    record, _ = run(f"model={name}", "model.weights=random", "model.dtype=float32", *words, *special)
    assert record.status == "done" and record.result["proof"]["passed"]

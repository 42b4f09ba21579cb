"""A method is a start, a variant and an optimiser: each name runs, the seven of before keep their ids, what
cannot be had together is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from nora import cli, starts, streams
from nora.adapters import lora_layers
from nora.config.compose import choices
from nora.config.schema import MethodSpec
from nora.config.spec import run_id, spec_dict
from nora.errors import Interrupted
from nora.execution.execute import execute
from nora.kinds import compose_run
from nora.kinds.parts import bases
from nora.kinds.parts.recipe import optimizer_of
from nora.store.runs import Store
from twins import tiny_opt

CONF = Path(__file__).resolve().parents[2] / "conf"
SEVEN = {
    "prefix": "517a78bb980e1ff6",
    "lora": "1210a67059d9b947",
    "olora": "8afaea5b422d1a4d",
    "pissa": "aac465a23e60777d",
    "nora": "1ec1f7879d137bcb",
    "nora_plus": "fe32e139dacb9ed8",
    "lora_p": "d2088c22ab496775",
}


def _spec(checkout: Path, *words: str) -> Any:
    return compose_run(checkout, words)[0]


@pytest.mark.parametrize("name", sorted(SEVEN))
def test_the_seven_methods_of_before_keep_their_ids(name: str, checkout: Path) -> None:
    spec = _spec(checkout, f"method={name}")
    assert run_id(spec) == SEVEN[name]
    new = {"variant", "optimizer", "lr_ratio", "options", "init_rows", "match", "source"}
    assert not new & set(spec_dict(spec)["method"])


def test_every_start_variant_and_optimiser_has_a_method_of_its_name() -> None:
    named = {*starts.names("inits"), *starts.names("variants"), *starts.names("optimizers")}
    without = {"kaiming", "nystrom", "adamw", "scaled_gd", "scaled_gd_normalized"}  # lora, nora, lora, lora_p, lora_p
    assert named - without <= set(choices(CONF, "method"))


@pytest.mark.parametrize("name", [name for name in choices(CONF, "method") if not starts.missing("inits", name)])
def test_every_method_runs_on_text_and_its_start_is_proved(name: str, run: Callable[..., Any]) -> None:
    record, made = run(f"method={name}")
    assert made and record.status == "done" and record.result["proof"]["passed"]
    own = record.spec["method"]
    rows = record.run.get("start_rows")
    if own.get("init_rows") is None:
        assert rows is None
    else:  # indices into the training rows alone: two rounds of them at this scale
        assert len(rows) == own["init_rows"] == 16
        assert sorted(rows) == sorted([*range(record.metrics["rows"]["train"])] * 2)
    if own["adapter"] == "lora":
        assert record.run["start_seconds"] > 0 and record.run["start_bytes"] >= 0


def test_the_three_axes_are_independent(run: Callable[..., Any]) -> None:
    record, _ = run("method=lora", "method.init=eva", "method.variant=dora", "method.optimizer=lora_plus")
    assert record.result["proof"]["init"] == "eva" and record.result["proof"]["passed"]
    assert {"variant": "dora", "optimizer": "lora_plus", "lr_ratio": 16.0}.items() <= record.spec["method"].items()


@pytest.mark.parametrize(
    "typed, same",
    [
        (["method=lora", "method.optimizer=adamw"], ["method=lora"]),
        (["method=lora", "method.optimizer=scaled_gd_normalized", "method.name=lora_p"], ["method=lora_p"]),
        (["method=lora", "method.optimizer=scaled_gd"], ["method=lora", "method.preconditioner=scaled_gd",
                                                         "method.normalize=none", "method.damping=1e-6"]),
        (["method=lora_ga", "method.gamma=16.0"], ["method=lora_ga", "method.options.gamma=16.0"]),
        (["method=lora_ga"], ["method=lora", "method.name=lora_ga", "method.init=lora_ga"]),
    ],
)  # fmt: skip
def test_two_ways_to_say_one_thing_have_one_id(typed: list[str], same: list[str], checkout: Path) -> None:
    assert run_id(_spec(checkout, *typed)) == run_id(_spec(checkout, *same))


@pytest.mark.parametrize("word", ["method.init_rows=8", "method.gamma=8.0", "method.match=frobenius"])
def test_the_count_of_rows_and_the_options_are_in_the_id(word: str, checkout: Path) -> None:
    method = "method=nora" if "match" in word else "method=lora_ga"
    assert run_id(_spec(checkout, method, word)) != run_id(_spec(checkout, method))


@pytest.mark.parametrize(
    "words, message",
    [
        (["method.variant=dorra"], "variant: given dorra, did you mean dora? allowed dora, lora_fa, rslora"),
        (["method.optimizer=lion"], "optimizer: given lion, allowed adamw, lora_fa, lora_plus, riemannian"),
        (["method=lora_p", "method.optimizer=lora_plus"], "optimizer=lora_plus cannot be had with preconditioner"),
        (["method=lora_fa", "method.optimizer=lora_plus"], "cannot be had with variant=lora_fa, which has its own"),
        (["method=lora", "method.optimizer=lora_fa"], "use variant=lora_fa"),
        (["method=nora_plus", "method.variant=lora_fa"], "freezes A, and preconditioner=scaled_gd needs both"),
        (["method=init_b", "method.variant=lora_fa"], "freezes A, which this start leaves at zero"),
        (["method=nora", "method.side=B", "method.variant=lora_fa"], "freezes A, which this start leaves at zero"),
        (["method=prefix", "method.variant=dora"], "variant has no meaning with adapter=prefix"),
        (["method=pissa", "method.match=frobenius"], "match=frobenius has no meaning with init=pissa"),
        (["method=lora", "method.init_rows=4"], "init_rows has no meaning with init=kaiming"),
        (["method=lora", "method.gamma=4.0"], "method.gamma: unknown key"),
        (["method=lora_one", "method.gamma=much"], "gamma: given 'much', required a float with init=lora_one"),
        (["method=lora", "method.lr_ratio=4.0"], "lr_ratio has no meaning with optimizer=None"),
        (["method=orthogonal", "method.rank=3"], "rank: given 3, required an even one with init=orthogonal"),
        (["method=lora_ga", "method.rank=17"], "rank: given 17, required at most 16, 1/2 of the smaller side"),
        (["kind=dreambooth", "method=lora_fa"], "method.variant=lora_fa: given kind=dreambooth"),
        (["kind=dreambooth", "method=pissa", "method.variant=dora"], "no file that diffusers loads holds it"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "scale=smoke", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_the_rows_of_a_start_are_a_stream_of_their_own() -> None:
    rows = bases.TrainingRows(100, lambda model, index: torch.zeros(()))
    assert rows.stream(16, 0) == rows.stream(16, 0) != rows.stream(16, 1)
    assert len(set(rows.stream(100, 0))) == 100 and rows.stream(16, 0) == rows.stream(100, 0)[:16]
    order = torch.randperm(100, generator=streams.generator(0, "order", "epoch 0")).tolist()
    assert rows.stream(100, 0) != order


def test_a_start_looks_at_the_training_rows_it_says_and_at_no_other(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every text the model sees before the first step is a training row or the probe of the proof."""
    from nora.training.objectives import ClassificationObjective

    seen: list[int] = []
    loss = ClassificationObjective.loss

    def watched(self: Any, model: Any, indices: Any) -> Any:
        seen.append(list(indices))
        return loss(self, model, indices)

    monkeypatch.setattr(ClassificationObjective, "loss", watched)
    record, _ = run("method=lora_one", "method.init_rows=5")
    assert seen[:5] == [[index] for index in record.run["start_rows"]] and len(seen[5]) > 1


def _method(checkout: Path, name: str, *words: str) -> MethodSpec:
    return _spec(checkout, f"method={name}", *words).method


def _adapted(method: MethodSpec) -> Any:
    return get_peft_model(tiny_opt(), bases.lora_config(method, ["q_proj", "v_proj"]))


def test_lora_plus_steps_b_faster(checkout: Path) -> None:
    method = _method(checkout, "lora_plus", "method.lr_ratio=8.0")
    model = _adapted(method)
    make = optimizer_of(method)
    assert make is not None
    optimizer = make(model, lr=1e-3, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for layer in lora_layers(model):
        assert rates[id(layer.parameter_A)] == 1e-3 and rates[id(layer.parameter_B)] == pytest.approx(8e-3)
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-7 for group in optimizer.param_groups)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_the_riemannian_step_is_that_of_scaled_gradients(checkout: Path) -> None:
    method = _method(checkout, "riemannian", "method.damping=0.5")
    model = _adapted(method)
    for layer in lora_layers(model):
        torch.nn.init.normal_(layer.parameter_B, std=0.3, generator=torch.Generator().manual_seed(0))
        layer.parameter_A.grad, layer.parameter_B.grad = torch.ones_like(layer.A), torch.ones_like(layer.B)
    (layer, *_) = lora_layers(model)
    A, B = layer.A.detach().clone(), layer.B.detach().clone()
    make = optimizer_of(method)
    assert make is not None
    make(model, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0).step()
    expected = torch.ones_like(B) @ torch.linalg.inv(A @ A.T + 0.5 * torch.eye(len(A)))
    torch.testing.assert_close(layer.parameter_B.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant, check", [("dora", "use_dora"), ("rslora", "use_rslora")])
def test_variants_are_pefts(variant: str, check: str, checkout: Path) -> None:
    config = bases.lora_config(_method(checkout, variant), ["q_proj"])
    assert isinstance(config, LoraConfig) and getattr(config, check) is True
    assert getattr(bases.lora_config(_method(checkout, "lora"), ["q_proj"]), check) is False


def test_lora_fa_moves_b_alone(run: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    record, _ = run("method=lora_fa", "exec.keep_adapter=true")
    (kept,) = (tmp_path / "results" / "runs" / "finetune" / record.id).glob("adapter*.safetensors")
    trained = load_file(kept)
    assert trained and all("lora_B" in name for name in trained) and any(value.any() for value in trained.values())


@pytest.mark.parametrize("name", ["lora_fa", "lora_plus", "riemannian", "dora", "corda", "eva", "lora_one"])
def test_an_interrupted_run_comes_to_the_same_result(name: str, checkout: Path, tmp_path: Path) -> None:
    words = ["scale=smoke", "task=cb", f"method={name}", "exec.progress=false", "exec.device=cpu",
             "exec.checkpoint_every=1"]  # fmt: skip
    spec, settings, _ = compose_run(checkout, words)
    whole, _ = execute(spec, settings, checkout=checkout, store=Store(tmp_path / "whole"))
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        execute(spec, settings, checkout=checkout, store=Store(tmp_path / "cut"), stop_requested=lambda: next(asked))
    resumed, _ = execute(spec, settings, checkout=checkout, store=Store(tmp_path / "cut"))
    assert resumed.run["resumed_at_step"] and resumed.result == whole.result


def test_sharpness_is_recorded_and_changes_nothing_else(run: Callable[..., Any]) -> None:
    plain, _ = run("method=nora")
    record, _ = run("method=nora", "measure=[sharpness]")
    found = record.metrics["sharpness"]
    assert found["value"] > 0 and 0 < found["products"] <= 30 and found["rows"] == 16
    assert record.metrics["test"] == plain.metrics["test"] and record.metrics["dev"] == plain.metrics["dev"]


def test_sharpness_of_a_picture_model(run: Callable[..., Any]) -> None:
    words = ["kind=dreambooth", "protocol.steps=1", "protocol.pictures=1", "protocol.picture_steps=1"]
    found = [run(*words, f"method={name}", "measure=[sharpness]", task="dog")[0] for name in ("lora", "eva")]
    values = [record.metrics["sharpness"]["value"] for record in found]
    assert min(values) > 0 and values[0] != values[1]
    assert all(record.result["proof"]["passed"] for record in found)


@pytest.mark.parametrize("name", [n for n in starts.names("inits") if n not in ("kaiming", "loftq")])
def test_every_start_is_had_on_pictures_too(name: str, run: Callable[..., Any]) -> None:
    words = ["kind=dreambooth", "protocol.steps=1", "protocol.pictures=1", "protocol.picture_steps=1", "method.rank=4"]
    record, _ = run(*words, "method=lora", f"method.init={name}", task="dog")
    assert record.status == "done" and record.result["proof"]["passed"]

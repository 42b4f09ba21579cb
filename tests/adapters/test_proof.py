"""The init proof passes for each real start and fails for each way a start is known to go wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nora import starts
from nora.adapters import initialize_, inits, lora_layers, nystrom_init_, prove_init, snapshot_weights
from twins import one_linear_with_lora, tiny_opt, with_lora

X = {"x": torch.randn(5, 32, generator=torch.Generator().manual_seed(9))}


def test_an_untouched_kaiming_A_fails() -> None:
    """W is square and of full rank: every A lies in its row space, so only recomputing the sketch can tell."""
    model = one_linear_with_lora()
    (layer,) = lora_layers(model)
    assert torch.linalg.matrix_rank(layer.weight) == 32
    report = prove_init(model, inputs=X)
    assert not report.passed and "differ from nystrom" in report.problems[0]


def test_a_kaiming_start_is_not_taken_for_a_sketch() -> None:
    model = one_linear_with_lora()
    start = initialize_(model, "kaiming", seed=0)
    assert prove_init(model, start, inputs=X).passed
    report = prove_init(model, inputs=X)
    assert not report.passed and "differ from nystrom" in report.problems[0]


def test_a_kaiming_A_under_a_sketchs_mark_fails() -> None:
    model = one_linear_with_lora()
    (layer,) = lora_layers(model)
    kaiming = layer.A.detach().clone()
    nystrom_init_(model, xi=0.1)
    layer.A.data.copy_(kaiming)
    report = prove_init(model, inputs=X)
    assert not report.passed and report.modules[0].relative_difference > 0.5
    assert report.output_difference == 0.0, "B = 0 hides it from the output"


def test_an_init_that_writes_to_the_module_instead_of_its_weight_fails() -> None:
    """``lora_A.data = sketch`` sets an attribute of the nn.Linear module that no forward pass reads."""
    model = one_linear_with_lora()
    (layer,) = lora_layers(model)
    kaiming = layer.A.detach().clone()
    nystrom_init_(model, xi=0.1)
    sketch = layer.A.detach().clone()
    layer.A.data.copy_(kaiming)
    layer.module.lora_A["default"].data = sketch
    assert torch.equal(layer.module.lora_A["default"].data, sketch)
    assert not prove_init(model).passed


def test_a_sketch_of_a_weight_that_is_replaced_later_fails() -> None:
    model = one_linear_with_lora()
    nystrom_init_(model, xi=0.1)
    (layer,) = lora_layers(model)
    arriving = torch.randn(32, 32, generator=torch.Generator().manual_seed(4))
    layer.module.get_base_layer().weight.data.copy_(arriving)
    assert not prove_init(model).passed
    assert not prove_init(model, pretrained={"proj": arriving}).passed


@pytest.mark.parametrize("init", ["nystrom", "kaiming", "pissa", "olora"])
def test_a_changed_base_weight_fails_where_the_original_is_known(init: str) -> None:
    model = tiny_opt()
    pretrained = snapshot_weights(model, {"q_proj", "v_proj"})
    adapted = with_lora(model, init=inits.load(init).PEFT_INIT)
    start = initialize_(adapted, init)
    assert prove_init(adapted, start, pretrained=pretrained).passed
    lora_layers(adapted)[2].module.get_base_layer().weight.data[0, 0] += 0.01
    report = prove_init(adapted, start, pretrained=pretrained)
    assert not report.passed and len(report.problems) == 1 and "frozen weight" in report.problems[0]
    assert lora_layers(adapted)[2].name in report.problems[0]


@pytest.mark.parametrize("init", [name for name in inits.names() if not starts.missing("inits", name)])
def test_each_real_start_passes(init: str) -> None:
    model = tiny_opt()
    pretrained = snapshot_weights(model, {"q_proj", "v_proj"})
    inputs = {"input_ids": torch.tensor([[1, 5, 9, 23]])}
    with torch.no_grad():
        base = model(**inputs).logits
    adapted = with_lora(model, init=inits.load(init).PEFT_INIT)
    ids = torch.arange(3, 24)[None]
    start = initialize_(adapted, init, seed=2, batches=[{"input_ids": ids, "labels": ids}])
    report = prove_init(adapted, start, inputs=inputs, pretrained=pretrained, base_output=base)
    assert report.passed, report.problems
    assert len(report.modules) == 4
    assert report.output_difference is not None
    module = inits.load(init)
    exact = not (module.MOVES_BASE or hasattr(module, "CHANGES_OUTPUT") or hasattr(module, "ROUNDS"))
    assert (report.output_difference == 0.0) == exact


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_moved_base_whose_output_is_off_fails(init: str) -> None:
    model = one_linear_with_lora(init=init)
    start = initialize_(model, init)
    (layer,) = lora_layers(model)
    with torch.no_grad():
        expected = X["x"] @ (layer.weight + layer.scaling * layer.B @ layer.A).T
    assert prove_init(model, start, inputs=X, base_output=expected).passed
    assert not prove_init(model, start, inputs=X, base_output=1.001 * expected).passed


def test_an_adapter_that_changes_the_output_fails() -> None:
    model = one_linear_with_lora()
    nystrom_init_(model, xi=0.1)
    lora_layers(model)[0].B.data[0, 0] = 1e-6
    report = prove_init(model, inputs=X)
    assert report.output_difference and not report.passed


def test_another_seed_or_xi_under_the_mark_fails() -> None:
    for change in ({"seed": 1, "xi": 0.1}, {"seed": 0, "xi": 0.101}):
        model, other = one_linear_with_lora(), one_linear_with_lora()
        nystrom_init_(model, xi=0.1, seed=0)
        nystrom_init_(other, **change)
        lora_layers(model)[0].A.data.copy_(lora_layers(other)[0].A)
        assert not prove_init(model).passed


def test_nan_in_a_factor_fails() -> None:
    model = one_linear_with_lora()
    nystrom_init_(model, xi=0.1)
    lora_layers(model)[0].A.data[0, 0] = float("nan")
    assert not prove_init(model).passed


def test_a_missing_pretrained_weight_fails() -> None:
    model = one_linear_with_lora()
    nystrom_init_(model, xi=0.1)
    report = prove_init(model, pretrained={})
    assert not report.passed and "no pretrained weight" in report.problems[0]


@pytest.mark.parametrize("init", ["kaiming", "nystrom"])
def test_rho_tells_a_sketch_from_a_draw_that_knows_nothing_of_W(init: str) -> None:
    """Mean over 60 seeds: 1 for Kaiming, in·‖WᵀW‖²/‖W‖⁴ (numpy) for a sketch."""
    model = one_linear_with_lora(64, 64, rank=8)
    (layer,) = lora_layers(model)
    W = layer.weight.double().numpy()
    sketch = 64 * np.linalg.norm(W.T @ W) ** 2 / np.linalg.norm(W) ** 4
    rho = []
    for seed in range(60):
        start = initialize_(model, init, seed=seed)
        (proof,) = prove_init(model, start).modules
        A = layer.A.detach().double().numpy()
        assert proof.rho == pytest.approx(64 * np.linalg.norm(A @ W.T) ** 2 / np.linalg.norm(A) ** 2 / (W**2).sum())
        assert proof.rho_sketch == pytest.approx(sketch, rel=1e-5)
        rho.append(proof.rho)
    assert sketch == pytest.approx(2, rel=0.05)
    assert np.mean(rho) == pytest.approx(1 if init == "kaiming" else sketch, rel=0.04)


def test_rho_of_side_B_and_the_scale() -> None:
    model = one_linear_with_lora(48, 32)
    report = prove_init(model, nystrom_init_(model, xi=0.1, side="B").start)
    (layer,) = lora_layers(model)
    W, B = layer.weight.double().numpy(), layer.B.detach().double().numpy()
    (proof,) = report.modules
    assert proof.rho == pytest.approx(48 * np.linalg.norm(B.T @ W) ** 2 / np.linalg.norm(B) ** 2 / (W**2).sum())
    assert proof.scale_ratio == pytest.approx(np.sqrt((B**2).mean()) * np.sqrt(3 * 32))


def test_the_proof_changes_nothing() -> None:
    from twins import same_bytes, snapshot

    model = one_linear_with_lora().train()
    nystrom_init_(model, xi=0.1)
    before = snapshot(model)
    prove_init(model, inputs=X)
    assert same_bytes(before, snapshot(model)) and model.training

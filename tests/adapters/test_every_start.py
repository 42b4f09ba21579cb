"""Every start by name: its formula in float64, what it does to the base, and a version of it that silently did nothing.

The references are numpy's decompositions of the pretrained weight, of a gradient that autograd takes through the base
weight, and of the layer's inputs caught by a hook on a model without an adapter.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import EvaConfig, LoraConfig, LoraGAConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora import preprocess_loraga

from nora import starts, streams
from nora.adapters import (
    factors_at_start,
    initialize_,
    inits,
    lora_layers,
    nystrom_gradient_init_,
    prove_init,
    save_adapter,
    snapshot_weights,
    start_,
)
from twins import OneLinear, same_bytes, snapshot, tiny_opt, with_lora

TARGETS = {"q_proj", "v_proj"}
RANK, ALPHA, SCALING = 4, 12, 3.0
IDS = [torch.randint(3, 60, (1, 24), generator=torch.Generator().manual_seed(i)) for i in range(4)]
BATCHES = [{"input_ids": ids, "labels": ids} for ids in IDS]
NAMES = [name for name in inits.names() if name != "loftq"]  # tests of its own: test_quantised.py
DATA = [name for name in NAMES if "DATA" in starts.said("inits", name)]
Arrays = dict[str, np.ndarray]


def _model() -> Any:
    return with_lora(tiny_opt(), rank=RANK, alpha=ALPHA)


def _gradients() -> Arrays:
    """The mean over the batches of ∇_W, through the base weight itself."""
    plain = tiny_opt().requires_grad_(True)
    names = [name for name, _ in plain.named_modules() if name.endswith(("q_proj", "v_proj"))]
    total = dict.fromkeys(names, 0.0)
    for batch in BATCHES:
        plain.zero_grad()
        plain(**batch).loss.backward()
        total = {n: total[n] + plain.get_submodule(n).weight.grad.double().numpy() for n in names}
    return {name: value / len(BATCHES) for name, value in total.items()}


def _inputs() -> dict[str, list[np.ndarray]]:
    """Every batch's inputs [tokens, in] of every layer."""
    plain, seen = tiny_opt(), {}
    for name, module in plain.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            seen[name] = []
            module.register_forward_pre_hook(
                lambda m, x, name=name: seen[name].append(x[0].flatten(0, -2).double().numpy())
            )
    for batch in BATCHES:
        plain(**batch)
    return seen


def test_a_start_whose_package_is_not_here_is_one_line_and_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec  # where it is installed it is not seen for once
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *at: None if name == "bitsandbytes" else there(name, *at)
    )
    model = _model()
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"^loftq: takes bitsandbytes, not installed here \(pip install bitsandbytes\)$"
    ):
        start_(model, "loftq")
    assert same_bytes(before, snapshot(model))


def _sketch(name: str, rows: int) -> np.ndarray:
    return torch.randn(RANK, rows, generator=streams.generator(3, "init", name)).double().numpy()


def _product(W: np.ndarray, kept: slice) -> np.ndarray:
    U, S, Vh = np.linalg.svd(W)
    return (U[:, kept] * S[kept]) @ Vh[kept]


def _corda(name: str, W: np.ndarray) -> np.ndarray:
    scaled = [X / abs(X.max()) for X in _inputs()[name]]
    C = sum(X.T @ X for X in scaled) / len(scaled)
    C = C + 0.01 * np.diag(C).mean() * np.eye(len(C))
    return _product(W @ C, slice(None, RANK)) @ np.linalg.inv(C)


# What s B A is, in float64, where the start has both factors: it does not know signs and rotations.
BOTH: dict[str, tuple[Callable[[str, np.ndarray], np.ndarray], float]] = {
    "pissa": (lambda name, W: _product(W, slice(None, RANK)), 1e-5),
    "milora": (lambda name, W: _product(W, slice(-RANK, None)), 1e-4),
    "olora": (lambda name, W: SCALING * (lambda q, r: q[:, :RANK] @ r[:RANK])(*np.linalg.qr(W)), 1e-5),
    "corda": (_corda, 1e-4),
    "lora_one": (
        lambda name, W: SCALING * _product(-_gradients()[name], slice(None, RANK))
        / (128 * np.linalg.norm(_gradients()[name], 2)), 1e-4,
    ),
    "orthogonal": (lambda name, W: np.zeros_like(W), 1e-5),
}  # fmt: skip
# A, or B where A is zero, of the others.
ONE: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
    "nystrom": lambda name, W: 0.1 / SCALING * _sketch(name, len(W)) @ W,
    "nystrom_gradient": lambda name, W: -0.1 / SCALING * _sketch(name, len(W)) @ _gradients()[name],
    "gaussian": lambda name, W: _sketch(name, W.shape[1]) / RANK,
    "kaiming": lambda name, W: _uniform(name, (RANK, W.shape[1]), W.shape[1]),
    "init_b": lambda name, W: _uniform(name, (len(W), RANK), RANK),
}


def _uniform(name: str, shape: tuple[int, int], width: int) -> np.ndarray:
    draw = streams.generator(3, "init", name)
    return torch.empty(shape).uniform_(-(width**-0.5), width**-0.5, generator=draw).double().numpy()


def test_every_start_is_compared_with_something() -> None:
    assert {*BOTH, *ONE, "eva", "lora_ga", "pissa_niter"} == set(NAMES)


@pytest.mark.parametrize("name", sorted(BOTH))
def test_the_product_is_the_formulas(name: str) -> None:
    model, pretrained = _model(), snapshot_weights(tiny_opt(), TARGETS)
    start = initialize_(model, name, seed=3, batches=BATCHES)
    assert start.init == name
    formula, off = BOTH[name]
    for layer in lora_layers(model):
        W = pretrained[layer.name].double().numpy()
        A, B = layer.A.detach().double().numpy(), layer.B.detach().double().numpy()
        assert A.any() and B.any()
        expected = formula(layer.name, W)
        scale = np.linalg.norm(expected) or SCALING * np.linalg.norm(A) * np.linalg.norm(B)
        assert np.linalg.norm(SCALING * B @ A - expected) <= off * scale
        rest = W - SCALING * B @ A if inits.load(name).MOVES_BASE else W
        np.testing.assert_allclose(layer.weight.double().numpy(), rest, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ONE))
def test_the_one_factor_is_the_formulas(name: str) -> None:
    model, pretrained = _model(), snapshot_weights(tiny_opt(), TARGETS)
    initialize_(model, name, seed=3, batches=BATCHES)
    for layer in lora_layers(model):
        W = pretrained[layer.name].double().numpy()
        expected = ONE[name](layer.name, W)
        read, zero = (layer.B, layer.A) if name == "init_b" else (layer.A, layer.B)
        assert np.linalg.norm(read.detach().double().numpy() - expected) <= 1e-5 * np.linalg.norm(expected)
        assert not zero.any() and torch.equal(layer.weight, pretrained[layer.name])


def test_eva_captures_what_the_exact_components_do_and_is_pefts() -> None:
    model = _model()
    start = initialize_(model, "eva", batches=BATCHES)
    with pytest.warns(UserWarning, match="low_cpu_mem_usage"):
        reference = with_lora(tiny_opt(), init="eva", rank=RANK, alpha=ALPHA, eva_config=EvaConfig(rho=1.0))
    initialize_lora_eva_weights(reference, BATCHES, show_progress_bar=False)
    for layer, peft in zip(lora_layers(model), lora_layers(reference), strict=True):
        X = np.concatenate(_inputs()[layer.name])
        values, vectors = np.linalg.eigh(np.cov(X.T, bias=True))
        A = layer.A.detach().double().numpy()
        np.testing.assert_allclose(A @ A.T, np.eye(RANK), atol=1e-5)
        assert ((A @ np.cov(X.T, bias=True)) * A).sum() >= 0.95 * values[-RANK:].sum()
        torch.testing.assert_close(layer.A, peft.A)
        assert not layer.B.any()
        np.testing.assert_allclose(start.statistics[layer.name]["covariance"], np.cov(X.T, bias=True), atol=1e-9)  # type: ignore[index]


def test_pissa_niter_is_nearly_the_best_rank_r_part() -> None:
    """Eckart-Young: no matrix of rank r is nearer to W than the truncated decomposition; four power iterations come
    within 5 % of it on a spectrum without a gap."""
    model, pretrained = _model(), snapshot_weights(tiny_opt(), TARGETS)
    initialize_(model, "pissa_niter", seed=3)
    for layer in lora_layers(model):
        W = pretrained[layer.name].double().numpy()
        left = np.linalg.norm(layer.weight.double().numpy())
        best = np.linalg.norm(np.linalg.svd(W)[1][RANK:])
        assert best * (1 - 1e-6) <= left <= 1.05 * best
        made = SCALING * (layer.B @ layer.A).detach().double().numpy()
        np.testing.assert_allclose(layer.weight.double().numpy(), W - made, atol=1e-6)


def test_lora_ga_takes_the_gradients_vectors_and_is_what_pefts_own_recipe_makes() -> None:
    """A = V_r, B = U_{r+1…2r} S · out^¼/√γ: by AᵀA and B Bᵀ, since each pair's sign is free on either side."""
    model, gradients = _model(), _gradients()
    pretrained = snapshot_weights(tiny_opt(), TARGETS)
    initialize_(model, "lora_ga", seed=3, batches=BATCHES)
    base = tiny_opt()
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    )  # fmt: skip

    def steps() -> None:
        for batch in BATCHES:  # the first layer's hook wants inputs that require gradients
            inputs = base.get_input_embeddings()(batch["input_ids"]).requires_grad_()
            base(inputs_embeds=inputs, labels=batch["labels"]).loss.backward()

    preprocess_loraga(base, config, steps)
    reference = get_peft_model(base, config)  # type: ignore[arg-type]
    for layer, peft in zip(lora_layers(model), lora_layers(reference), strict=True):
        U, S, Vh = np.linalg.svd(gradients[layer.name])
        second = U[:, RANK : 2 * RANK] * S[RANK : 2 * RANK] * 32**0.25 / 4.0
        for one in (layer, peft):
            A, B = one.A.detach().double().numpy(), one.B.detach().double().numpy()
            for made, exact in ((A.T @ A, Vh[:RANK].T @ Vh[:RANK]), (B @ B.T, second @ second.T)):
                assert np.linalg.norm(made - exact) <= 0.2 * np.linalg.norm(exact)
        A, B = layer.A.detach().double().numpy(), layer.B.detach().double().numpy()
        W = pretrained[layer.name].double().numpy()
        np.testing.assert_allclose(layer.weight.double().numpy(), W - SCALING * B @ A, atol=1e-6)


def test_corda_is_pefts_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's module imports ``attrs``, which peft does not install; the standard library's dataclass does for it."""
    monkeypatch.setitem(sys.modules, "attr", SimpleNamespace(dataclass=dataclasses.dataclass))
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model, base = _model(), tiny_opt()
    initialize_(model, "corda", batches=BATCHES)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="ipm"),
    )  # fmt: skip
    preprocess_corda(base, config, run_model=lambda: [base(**batch) for batch in BATCHES] and None)
    reference = get_peft_model(base, config)  # type: ignore[arg-type]
    for layer, peft in zip(lora_layers(model), lora_layers(reference), strict=True):
        ours, theirs = layer.B @ layer.A, peft.B @ peft.A
        assert torch.linalg.norm(ours - theirs) <= 1e-3 * torch.linalg.norm(theirs)
    monkeypatch.delitem(sys.modules, "peft.tuners.lora.corda")


def test_the_gradient_sketch_is_that_of_the_call_which_takes_a_loss() -> None:
    one, other = _model(), _model()
    initialize_(one, "nystrom_gradient", seed=2, batches=BATCHES[:1], xi=0.5)
    nystrom_gradient_init_(other, lambda m: m(**BATCHES[0]).loss, xi=0.5, seed=2)
    for a, b in zip(lora_layers(one), lora_layers(other), strict=True):
        torch.testing.assert_close(a.A, b.A, rtol=1e-4, atol=1e-7)


def _pretrained() -> dict[str, Any]:
    plain = tiny_opt()
    inputs = {"input_ids": IDS[0]}
    return {
        "inputs": inputs,
        "pretrained": snapshot_weights(plain, TARGETS),
        "base_output": plain(**inputs).logits,
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_proof_passes_and_has_a_number_without_a_seed(name: str) -> None:
    """ρ: 1 for what knows nothing of the matrix it is made from, above for what leans to it, below for MiLoRA."""
    model = _model()
    start = initialize_(model, name, seed=3, batches=BATCHES)
    report = prove_init(model, start, **_pretrained())
    assert report.passed, report.problems
    rho = float(np.mean([module.rho for module in report.modules]))
    knows = name not in ("kaiming", "gaussian", "init_b", "orthogonal")
    assert (rho < 0.2) if name == "milora" else (rho > 1.4) if knows else (0.5 < rho < 1.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_start_that_did_nothing_is_not_proved(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factors stay PEFT's ordinary ones, and so does the base: what a wrong attribute or a copy leads to."""
    model = _model()
    module, before = inits.load(name), snapshot(model)
    monkeypatch.setattr("nora.adapters.initialize.write_factors", lambda layer, factors: None)
    if hasattr(module, "make"):
        monkeypatch.setattr(module, "make", lambda layer, data, **options: None)
    start = initialize_(model, name, seed=3, batches=BATCHES)
    if module.MOVES_BASE and not hasattr(module, "make"):  # ours takes s B A off the base; this one takes nothing
        model = _model()
    assert same_bytes(snapshot(model), before)
    report = prove_init(model, start, **_pretrained())
    assert not report.passed and any("differ from" in problem for problem in report.problems)


@pytest.mark.parametrize("name", [n for n in NAMES if inits.load(n).MOVES_BASE])
def test_a_base_that_was_not_moved_is_not_proved(name: str) -> None:
    model = _model()
    start = initialize_(model, name, seed=3, batches=BATCHES)
    pretrained = _pretrained()
    for layer in lora_layers(model):
        layer.held_weight.data.copy_(pretrained["pretrained"][layer.name])
    report = prove_init(model, start, **pretrained)
    assert not report.passed and any("frozen weight is off" in problem for problem in report.problems)


def test_a_step_that_was_not_taken_is_not_proved() -> None:
    model = _model()
    start = initialize_(model, "lora_one", batches=BATCHES)
    given = _pretrained()
    moved = model(**given["inputs"]).logits.detach()
    report = prove_init(model, start, **{**given, "base_output": moved})
    assert any("is itself a step away from it" in problem for problem in report.problems)


def test_components_of_something_else_are_not_eva(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(stream: Any, rank: Any, batches: Any, tau: float) -> Any:
        return {x.name: torch.linalg.qr(torch.randn(32, x.rank))[0].T for x in stream.layers}

    monkeypatch.setattr("nora.adapters.data._eva_components", wrong)
    report = start_(_model(), "eva", batches=BATCHES)
    assert not report.passed and "captures" in report.problems[0]


@pytest.mark.parametrize("name", NAMES)
def test_in_one_call(name: str) -> None:
    model = _model()
    report = start_(model, name, seed=1, batches=BATCHES)
    assert report.passed, report.problems
    with pytest.raises(ValueError, match="both factors|moved by the start"):
        if name in ("kaiming", "gaussian", "nystrom", "nystrom_gradient", "eva", "init_b"):
            torch.nn.init.ones_(lora_layers(model)[0].parameter_B)
            torch.nn.init.ones_(lora_layers(model)[0].parameter_A)
        start_(model, name, batches=BATCHES)


@pytest.mark.parametrize("name", [n for n in NAMES if inits.load(n).MOVES_BASE])
def test_a_moved_base_is_saved_for_the_untouched_one(name: str, tmp_path: Any) -> None:
    from peft import PeftModel

    model = _model()
    start_(model, name, batches=BATCHES)
    at_start = factors_at_start(model)
    with pytest.raises(ValueError, match="its start moved the base weights"):
        save_adapter(model, tmp_path)
    for layer in lora_layers(model):
        layer.parameter_B.data += 0.1
    save_adapter(model, tmp_path, at_start=at_start)
    loaded = PeftModel.from_pretrained(tiny_opt(), str(tmp_path)).eval()
    torch.testing.assert_close(loaded(input_ids=IDS[0]).logits, model(input_ids=IDS[0]).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "batches: given none"),
        ({"batches": []}, "batches: given none, required at least one"),
        ({"batches": BATCHES, "loss": lambda m, b: m(**b).loss * float("nan")}, "required a finite scalar"),
        ({"batches": BATCHES, "loss": lambda m, b: m(**b).logits}, "required a finite scalar"),
    ],
)
def test_rows_that_are_no_use_leave_the_model_as_it_was(name: str, given: dict[str, Any], message: str) -> None:
    model = _model()
    before, modes = snapshot(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        initialize_(model, name, **given)
    assert same_bytes(before, snapshot(model)) and [p.requires_grad for p in model.parameters()] == modes


def test_short_rows_are_refused_by_eva() -> None:
    short = [{"input_ids": IDS[0][:, :3], "labels": IDS[0][:, :3]}]
    with pytest.raises(ValueError, match="given at most 3 tokens in one, required 4"):
        initialize_(_model(), "eva", batches=short)


@pytest.mark.parametrize("name", ["pissa_niter", "milora", "corda", "lora_ga", "lora_one", "eva", "nystrom_gradient"])
def test_a_repeated_start_has_the_same_bytes_and_leaves_the_global_generator_alone(name: str) -> None:
    one, other, state = _model(), _model(), torch.get_rng_state()
    for model in (one, other):
        initialize_(model, name, seed=3, batches=BATCHES)
    assert same_bytes(snapshot(one), snapshot(other)) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", [n for n in NAMES if starts.said("inits", n).get("ONE_SIDED")])
@pytest.mark.parametrize("baseline", ["kaiming", "gaussian"])
def test_matched_starts_have_the_baselines_size(name: str, baseline: str) -> None:
    model = _model()
    report = start_(model, name, batches=BATCHES, size_of=baseline)
    assert report.passed, report.problems
    expected = (RANK / 3) ** 0.5 if baseline == "kaiming" else (32 / RANK) ** 0.5
    for layer in lora_layers(model):
        assert float(torch.hypot(layer.A.norm(), layer.B.norm()).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_baselines_size_is_that_of_many_draws() -> None:
    for baseline, expected in (("kaiming", (RANK / 3) ** 0.5), ("gaussian", (32 / RANK) ** 0.5)):
        squares = []
        for seed in range(20):
            model = _model()
            initialize_(model, baseline, seed=seed)
            squares += [float(layer.A.detach().square().sum()) for layer in lora_layers(model)]
        assert np.mean(squares) ** 0.5 == pytest.approx(expected, rel=0.03)


def test_a_start_of_two_factors_has_no_size_to_match() -> None:
    with pytest.raises(ValueError, match="two factors"):
        start_(_model(), "lora_one", batches=BATCHES, size_of="kaiming")


@pytest.mark.parametrize(
    "name, rank, message", [("orthogonal", 3, "required an even one"), ("lora_ga", 17, "required at most 16")]
)
def test_a_rank_that_cannot_be_had(name: str, rank: int, message: str) -> None:
    model = with_lora(tiny_opt(), rank=rank)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        initialize_(model, name, batches=BATCHES)
    assert same_bytes(before, snapshot(model))


def test_a_convolution_has_no_such_start() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3))
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0: given a Conv2d, required a linear layer"):
        initialize_(model, "milora")


def test_equal_singular_values_are_proved_up_to_a_rotation() -> None:
    """An orthogonal weight: every direction is as good, and another decomposition gives other factors."""
    base = OneLinear(16, 16)
    base.proj.weight.data = torch.linalg.qr(base.proj.weight)[0][:16, :16].contiguous()
    model = with_lora(base, target_modules=["proj"])
    pretrained = {"proj": base.proj.weight.detach().clone()}
    start = initialize_(model, "pissa")
    (layer,) = lora_layers(model)
    Q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    layer.parameter_A.data, layer.parameter_B.data = Q @ layer.A, layer.B @ Q.T
    assert prove_init(model, start, pretrained=pretrained).passed
    apart = with_lora(OneLinear(16, 16), target_modules=["proj"])
    pretrained = {"proj": OneLinear(16, 16).proj.weight.detach()}
    start = initialize_(apart, "pissa")
    (layer,) = lora_layers(apart)
    layer.parameter_A.data, layer.parameter_B.data = Q @ layer.A, layer.B @ Q.T
    assert not prove_init(apart, start, pretrained=pretrained).passed

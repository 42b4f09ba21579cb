"""NoRA+ as an optimiser: equality with PEFT's, determinism, convergence, its algebra; what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_riemannian_optimizer
from torch import Tensor, nn

from nora.adapters import create_nora_plus_optimizer, lora_layers, nystrom_init_
from nora.adapters.preconditioner import _One, scale_batched, scale_one_by_one
from twins import OneLinear, one_linear_with_lora, randomize_factors, same_bytes, snapshot, tiny_opt, with_lora

X = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
TARGET = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))


def _backward(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = (model(X) - TARGET).square().mean()
    loss.backward()
    return loss.detach()


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(float(_backward(model, optimizer)))
        optimizer.step()
    return losses


@pytest.mark.parametrize("optimizer_cls", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("damping", [1e-2, 1e-4])
def test_without_the_normaliser_it_is_pefts_riemannian_optimizer(optimizer_cls: Any, damping: float) -> None:
    """Twenty steps from the ordinary start, float64, so that B = 0 at t = 0 is in the comparison."""
    ours, pefts = (one_linear_with_lora().double() for _ in range(2))
    data = X.double(), TARGET.double()
    for model, optimizer in (
        (ours, create_nora_plus_optimizer(ours, optimizer_cls, damping=damping, normalize="none", lr=1e-3)),
        (pefts, create_riemannian_optimizer(pefts, optimizer_cls, lr=1e-3, reg=damping)),
    ):
        for _ in range(20):
            optimizer.zero_grad()
            (model(data[0]) - data[1]).square().mean().backward()
            optimizer.step()
    for mine, theirs in zip(ours.parameters(), pefts.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


def test_two_runs_are_bit_identical() -> None:
    states = []
    for _ in range(2):
        model = one_linear_with_lora()
        nystrom_init_(model, xi=0.1)
        _train(model, create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-2, max_grad_norm=1.0), 10)
        states.append(snapshot(model))
    assert same_bytes(*states)


@pytest.mark.parametrize("normalize", ["frobenius", "none"])
def test_converges_on_a_least_squares_distance(normalize: str) -> None:
    """‖p - t‖² where the target is the base plus a reachable update."""
    model = one_linear_with_lora(rank=4)
    nystrom_init_(model, xi=0.1)
    (layer,) = lora_layers(model)
    generator = torch.Generator().manual_seed(3)
    update = torch.randn(32, 4, generator=generator) @ torch.randn(4, 32, generator=generator) / 8
    optimizer = create_nora_plus_optimizer(model, torch.optim.AdamW, normalize=normalize, lr=2e-2, weight_decay=0.0)
    for _ in range(800):
        optimizer.zero_grad()
        loss = (layer.scaling * layer.B @ layer.A - update).square().sum()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3 * update.square().sum()


def test_an_sgd_step_does_not_depend_on_how_the_product_is_factored() -> None:
    """Without damping and normaliser the change of B A is invariant under A → M A, B → B M⁻¹ (to first order)."""
    model = one_linear_with_lora().double()
    randomize_factors(model)
    (layer,) = lora_layers(model)
    M = torch.eye(4, dtype=torch.float64) + 0.4 * torch.randn(4, 4, dtype=torch.float64, generator=X_GENERATOR)
    changes = []
    for mix in (torch.eye(4, dtype=torch.float64), M):
        other = copy.deepcopy(model)
        (mixed,) = lora_layers(other)
        mixed.A.data.copy_(mix @ layer.A)
        mixed.B.data.copy_(layer.B @ torch.linalg.inv(mix))
        before = (mixed.B @ mixed.A).detach()
        optimizer = create_nora_plus_optimizer(other, torch.optim.SGD, damping=0.0, normalize="none", lr=1e-6)
        (other(X.double()) - TARGET.double()).square().mean().backward()
        optimizer.step()
        changes.append((mixed.B @ mixed.A).detach() - before)
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-4, atol=1e-13)
    assert changes[0].abs().max() > 1e-9


X_GENERATOR = torch.Generator().manual_seed(11)


def test_clips_after_preconditioning_and_before_the_step() -> None:
    model = one_linear_with_lora()
    randomize_factors(model)
    optimizer = create_nora_plus_optimizer(model, torch.optim.SGD, normalize="none", max_grad_norm=0.5, lr=1.0)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    _backward(model, optimizer)
    optimizer.step()
    after = [p.detach() for p in model.parameters() if p.requires_grad]
    moved = torch.stack([torch.linalg.norm(b - a) for a, b in zip(after, before, strict=True)]).norm()
    assert moved == pytest.approx(0.5, rel=1e-3), "the step length is the clipping norm"


def test_other_parameters_are_stepped_unchanged() -> None:
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model = get_peft_model(net, LoraConfig(r=4, target_modules=["0"], modules_to_save=["1"]))  # type: ignore[arg-type]
    nystrom_init_(model, xi=0.1)
    plain = copy.deepcopy(model)
    for other, optimizer in (
        (model, create_nora_plus_optimizer(model, torch.optim.SGD, lr=0.1)),
        (plain, torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.1)),
    ):
        _backward(other, optimizer)
        optimizer.step()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        # At t = 0 A has no gradient; B's is preconditioned; the saved module's is not.
        assert torch.equal(mine, theirs) != ("lora_B" in name), name


def test_the_step_counter_is_saved_and_restored() -> None:
    def skips_A(state: dict[str, Any] | None) -> bool:
        """Whether the next step leaves A's (artificial) gradient as it is while B = 0."""
        model = one_linear_with_lora()
        optimizer = create_nora_plus_optimizer(model, torch.optim.SGD, lr=0.0)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        (layer,) = lora_layers(model)
        layer.A.grad, layer.B.grad = torch.ones_like(layer.A), torch.ones_like(layer.B)
        optimizer.step()
        return torch.equal(layer.A.grad, torch.ones_like(layer.A))

    model = one_linear_with_lora()
    optimizer = create_nora_plus_optimizer(model, torch.optim.SGD, lr=0.0)
    _train(model, optimizer, 3)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["nora_plus_steps"] == 3
    assert skips_A(None) and not skips_A(state)


def test_resuming_gives_the_same_bits() -> None:
    def fresh() -> tuple[Any, torch.optim.Optimizer]:
        model = one_linear_with_lora()
        nystrom_init_(model, xi=0.1, overwrite=True)
        return model, create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-2)

    model, optimizer = fresh()
    _train(model, optimizer, 3)
    kept, state = snapshot(model), copy.deepcopy(optimizer.state_dict())
    _train(model, optimizer, 3)
    resumed, again = fresh()
    resumed.load_state_dict(kept)
    again.load_state_dict(state)
    _train(resumed, again, 3)
    assert same_bytes(snapshot(model), snapshot(resumed))


def test_a_scheduler_and_several_adapters_on_it() -> None:
    model = one_linear_with_lora()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["proj"]))
    model.base_model.set_adapter(["default", "other"])
    optimizer = create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = snapshot(model)
    for _ in range(2):
        _backward(model, optimizer)
        optimizer.step()
        schedule.step()
    moved = {name for name, t in snapshot(model).items() if not torch.equal(t, before[name])}
    assert len(moved) == 4 and optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_factors_stay_finite_and_keep_their_dtype(dtype: torch.dtype) -> None:
    model = one_linear_with_lora().to(dtype)
    optimizer = create_nora_plus_optimizer(model, torch.optim.SGD, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (model(X.to(dtype)) - TARGET.to(dtype)).square().mean().backward()
        optimizer.step()
    (layer,) = lora_layers(model)
    assert layer.A.dtype == layer.B.grad.dtype == dtype and torch.isfinite(layer.A).all() and layer.B.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["conv", "embedding"])
def test_convolutions_and_embeddings_are_preconditioned_as_their_flattened_pairs(kind: str) -> None:
    module = nn.Conv2d(4, 8, 3) if kind == "conv" else nn.Embedding(32, 8)
    model = get_peft_model(nn.Sequential(module), LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))  # type: ignore[arg-type]
    randomize_factors(model)
    (layer,) = lora_layers(model)
    layer.A.grad, layer.B.grad = torch.randn_like(layer.A), torch.randn_like(layer.B)
    A, B, gA, gB = (t.detach().flatten(1).double() for t in (layer.A, layer.B, layer.A.grad, layer.B.grad))
    create_nora_plus_optimizer(model, torch.optim.SGD, damping=1e-3, normalize="none", lr=0.0).step()
    eye = 1e-3 * torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.solve(B.T @ B + eye, gA), gB @ torch.linalg.inv(A @ A.T + eye)
    for read, wanted in zip((layer.A.grad, layer.B.grad), expected, strict=True):
        torch.testing.assert_close(read.flatten(1).double(), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_the_batched_form_of_an_accelerator_equals_the_one_by_one_form() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [((4, 10), True), ((4, 10), True), ((7, 4), False), ((3, 4, 1, 1), False), ((4, 6, 3, 3), True)]
    gradients = [torch.randn(shape, generator=generator) for shape, _ in shapes]
    P = torch.randn(len(shapes), 4, 4, generator=generator)
    results = []
    for scale in (scale_one_by_one, scale_batched):
        copies = [g.clone() for g in gradients]
        scale([_One(g, P[i], left) for i, (g, (_, left)) in enumerate(zip(copies, shapes, strict=True))])
        results.append(copies)
    for one, other, before in zip(*results, gradients, strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.equal(one, before)


def test_pseudo_inverse_of_a_rank_deficient_partner() -> None:
    """Over-parametrised: λ = 0 and a Gram matrix of rank 2 of 4; (G)⁺, as the paper's pinv form."""
    from nora.adapters import Preconditioner

    model = one_linear_with_lora().double()
    randomize_factors(model)
    (layer,) = lora_layers(model)
    layer.B.data[:, 2:] = layer.B.data[:, :2]
    layer.A.grad = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = layer.A.grad.clone()
    Preconditioner([layer], damping=0.0, normalize="none", inverse="pinv").step()
    expected = torch.linalg.pinv(layer.B.T @ layer.B, rtol=1e-10) @ given
    torch.testing.assert_close(layer.A.grad, expected.detach(), rtol=1e-6, atol=1e-8)


def _only_B_trained(model: Any) -> Any:
    lora_layers(model)[0].A.requires_grad_(False)
    return model


def _nothing_trained(model: Any) -> Any:
    return model.requires_grad_(False)


class _Line(torch.optim.Optimizer):
    """An optimiser whose closure is not optional."""

    def step(self, closure: Any) -> None:  # type: ignore[override]
        raise AssertionError


@pytest.mark.parametrize(
    "change, arguments, error, message",
    [
        (None, {"optimizer_cls": torch.optim.LBFGS}, ValueError, "given LBFGS, which needs a closure"),
        (None, {"optimizer_cls": _Line}, ValueError, "given _Line, which needs a closure"),
        (None, {"optimizer_cls": nn.Linear}, TypeError, "required a subclass of torch.optim.Optimizer"),
        (None, {"normalize": "l2"}, ValueError, "normalize: given 'l2', required 'frobenius' or 'none'"),
        (None, {"damping": -1.0}, ValueError, "damping: given -1.0"),
        (None, {"damping": float("nan")}, ValueError, "damping: given nan"),
        (None, {"max_grad_norm": 0.0}, ValueError, "max_grad_norm: given 0.0"),
        (_only_B_trained, {}, ValueError, "proj: factor A of adapter 'default' is frozen and its partner is trained"),
        (_nothing_trained, {}, ValueError, "no trainable LoRA pair"),
        (lambda model: OneLinear(), {}, ValueError, "no trainable LoRA pair"),
    ],
)
def test_refusals(change: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = one_linear_with_lora()
    model = change(model) if change else model
    arguments = {"optimizer_cls": torch.optim.AdamW, "lr": 1e-3, **arguments}
    with pytest.raises(error, match=message):
        create_nora_plus_optimizer(model, **arguments)


def test_a_closure_is_refused_before_anything_moves() -> None:
    model = one_linear_with_lora()
    optimizer = create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-2)
    _backward(model, optimizer)
    before = snapshot(model)
    with pytest.raises(ValueError, match="closure: given one, required none"):
        optimizer.step(lambda: 0.0)
    assert same_bytes(before, snapshot(model))
    assert optimizer.state_dict()["param_groups"][0]["nora_plus_steps"] == 0


def test_a_frozen_second_adapter_is_left_out() -> None:
    model = with_lora(tiny_opt())
    model.add_adapter("frozen", LoraConfig(r=2, target_modules=["q_proj"]))
    create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-3)

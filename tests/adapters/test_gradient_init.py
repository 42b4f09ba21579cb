"""The start from a gradient (A.4) against ∇_W f taken by autograd through the base weight, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nora import streams
from nora.adapters import lora_layers, nystrom_gradient_init_, nystrom_init_
from twins import one_linear_with_lora, randomize_factors, same_bytes, snapshot, tiny_opt, with_lora

IDS = torch.arange(3, 24)[None]


def _loss(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, labels=IDS).loss


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("side", ["A", "B"])
def test_equals_the_sketch_of_the_negative_gradient(side: str, divide: bool) -> None:
    model = with_lora(tiny_opt(dtype=torch.float64), alpha=12).double()
    before = model(input_ids=IDS).logits
    layers = nystrom_gradient_init_(model, _loss, xi=0.5, side=side, divide_by_scaling=divide, seed=2)
    assert len(layers) == 4 and torch.equal(model(input_ids=IDS).logits, before)
    assert all(p.grad is None for p in model.parameters())
    plain = tiny_opt(dtype=torch.float64).requires_grad_(True)
    _loss(plain).backward()
    scale = -0.5 / 3 if divide else -0.5
    for layer in layers:
        gradient = plain.get_submodule(layer.name).weight.grad
        draw = streams.generator(2, "init", layer.name)
        if side == "A":
            expected, read, zero = scale * torch.randn(4, 32, generator=draw).double() @ gradient, layer.A, layer.B
        else:
            expected, read, zero = scale * gradient @ torch.randn(32, 4, generator=draw).double(), layer.B, layer.A
        torch.testing.assert_close(read.detach(), expected, rtol=1e-7, atol=1e-12)
        assert not zero.any() and read.any()


def test_of_a_factorisation_loss_it_is_the_sketch_of_the_target() -> None:
    """f = ½‖W + s B A - T‖² with W = 0: -∇f = T, so the start is that of ``nystrom_init_`` on a weight T."""
    target = torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    models = [one_linear_with_lora(20, 12).double() for _ in range(2)]
    lora_layers(models[0])[0].held_weight.data.zero_()
    lora_layers(models[1])[0].held_weight.data.copy_(target)
    eye = torch.eye(12, dtype=torch.float64)
    nystrom_gradient_init_(models[0], lambda m: 0.5 * (m(eye).T - target).square().sum(), xi=0.1)
    nystrom_init_(models[1], xi=0.1)
    torch.testing.assert_close(lora_layers(models[0])[0].A, lora_layers(models[1])[0].A, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda m: m(input_ids=IDS).logits, "required a finite scalar"),
        (lambda m: _loss(m) * float("nan"), "required a finite scalar"),
        (lambda m: m.base_model.model.lm_head.weight.sum().requires_grad_(), "has no gradient here"),
        (lambda m: 1 / 0, "division by zero"),
        (lambda m: torch.tensor(1.0), "loss: given tensor.*required a tensor that depends on the model's factors"),
        (lambda m: _loss(m).item(), "loss: given .*required a tensor that depends on the model's factors"),
    ],
)
def test_a_bad_loss_leaves_the_model_as_it_was(loss: Any, message: str) -> None:
    model = with_lora(tiny_opt())
    before = snapshot(model)
    with pytest.raises((ValueError, ZeroDivisionError), match=message):
        nystrom_gradient_init_(model, loss, xi=0.1)
    assert same_bytes(before, snapshot(model))


def test_a_trained_adapter_and_bad_settings_are_refused() -> None:
    model = with_lora(tiny_opt())
    with pytest.raises(ValueError, match="xi: given 0.0"):
        nystrom_gradient_init_(model, _loss, xi=0.0)
    with pytest.raises(ValueError, match="side: given 'C'"):
        nystrom_gradient_init_(model, _loss, xi=0.1, side="C")
    randomize_factors(model)
    with pytest.raises(ValueError, match="overwrite=True"):
        nystrom_gradient_init_(model, _loss, xi=0.1)
    nystrom_gradient_init_(model, _loss, xi=0.1, overwrite=True)

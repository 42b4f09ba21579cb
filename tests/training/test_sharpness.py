"""The largest eigenvalue of the Hessian against autograd's whole Hessian, and against a quadratic whose spectrum is
known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nora.adapters import initialize_, lora_layers
from nora.training.measures import sharpness
from twins import one_linear_with_lora, tiny_opt, with_lora


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class _Quadratic(nn.Module):
    def __init__(self, spectrum: Tensor) -> None:
        super().__init__()
        Q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=_draw()))[0]
        self.H = Q * spectrum @ Q.T
        self.x = nn.Parameter(torch.randn(len(spectrum), generator=_draw()))

    def forward(self) -> Tensor:
        return 0.5 * self.x @ self.H @ self.x


@pytest.mark.parametrize("top", [5.0, -0.5])
def test_the_largest_not_the_largest_in_size(top: float) -> None:
    """Of a Hessian with an eigenvalue of -7 too."""
    model = _Quadratic(torch.cat([torch.tensor([top, -7.0]), torch.linspace(-3, top - 0.5, 18)]))
    found = sharpness(model, lambda m: m(), [model.x], generator=_draw())
    assert found.value == pytest.approx(top, rel=1e-3) and found.products <= 20 and found.residual < 1e-2
    assert model.x.grad is None


def test_at_most_thirty_products() -> None:
    model = _Quadratic(torch.linspace(0.99, 1.0, 400))
    found = sharpness(model, lambda m: m(), [model.x], generator=_draw(), tolerance=0.0)
    assert found.products == 30 and found.value == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("init", ["kaiming", "nystrom", "pissa", "init_b"])
def test_of_an_adapter_it_is_that_of_the_whole_hessian(init: str) -> None:
    model = one_linear_with_lora(6, 5, rank=2)
    initialize_(model, init, seed=1)
    x = torch.randn(9, 5, generator=_draw())
    y = torch.randn(9, 6, generator=_draw())
    parameters = [p for p in model.parameters() if p.requires_grad]
    names = [n for n, p in model.named_parameters() if p.requires_grad]

    def of(*values: Tensor) -> Tensor:
        out = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))
        return (out - y).square().mean()

    blocks: Any = torch.autograd.functional.hessian(of, tuple(p.detach() for p in parameters))
    rows = [
        torch.cat([b.reshape(p.numel(), -1) for b in row], dim=1) for row, p in zip(blocks, parameters, strict=True)
    ]
    expected = float(torch.linalg.eigvalsh(torch.cat(rows).double())[-1])
    found = sharpness(model, lambda m: (m(x) - y).square().mean(), parameters, generator=_draw())
    assert found.value == pytest.approx(expected, rel=2e-3)


def test_gradient_descent_is_stable_below_two_over_it_and_not_above() -> None:
    """What the number is for: on B alone the loss of a linear map is quadratic, and the edge is exact."""
    model = one_linear_with_lora(6, 5, rank=2)
    (layer,) = lora_layers(model)
    x, y = torch.randn(9, 5, generator=_draw()), torch.randn(9, 6, generator=_draw())

    def loss(m: Any) -> Tensor:
        return (m(x) - y).square().mean()

    edge = 2 / sharpness(model, loss, [layer.parameter_B], generator=_draw(), tolerance=1e-5).value
    ends = []
    for rate in (0.95 * edge, 1.05 * edge):
        layer.parameter_B.data.zero_()
        for _ in range(400):
            (gradient,) = torch.autograd.grad(loss(model), [layer.parameter_B])
            layer.parameter_B.data -= rate * gradient
        ends.append(float(loss(model).detach()))
    assert ends[0] < 10 < 1e6 < ends[1]


def test_through_attention() -> None:
    model = with_lora(tiny_opt())
    ids = torch.arange(3, 24)[None]
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = sharpness(model, lambda m: m(input_ids=ids, labels=ids).loss, parameters, generator=_draw())
    again = sharpness(model, lambda m: m(input_ids=ids, labels=ids).loss, parameters, generator=_draw())
    assert found == again and found.value > 0 and found.residual < 0.05

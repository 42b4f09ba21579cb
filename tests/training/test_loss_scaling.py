"""fp16 with a scaled loss (CPU): the same steps as without a scale; an overflow skips its step until none can help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nora.adapters import Preconditioner, lora_layers
from nora.training.loop import SMALLEST_SCALE, Diverged, LoopState, make_state, train_step
from twins import same_bytes, snapshot

from test_train_loop import _model, _settings  # isort: skip


class _Linear:
    """A loss linear in the adapter, in float32 whatever the autocast: a scale of two to some power is exact."""

    num_examples = 4

    def __init__(self, slope: float = 1.0) -> None:
        self.slope = slope

    def count(self, indices: Sequence[int]) -> int:
        return len(indices)

    def loss(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        draw = torch.Generator().manual_seed(3)
        trained = [p for p in model.parameters() if p.requires_grad]
        weights = [torch.randn(p.shape, generator=draw) * self.slope for p in trained]
        return torch.stack([(p * w).sum() for p, w in zip(trained, weights, strict=True)]).sum() * len(indices)


def _state(precision: str, scale: float | None = None) -> tuple[Any, LoopState]:
    model = _model()
    preconditioner = Preconditioner(lora_layers(model))
    state = make_state(model, _settings(precision=precision), num_examples=40, preconditioner=preconditioner)
    if scale is not None:
        state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return model, state


def _step(model: Any, state: LoopState, objective: Any, **changes: Any) -> tuple[float, float]:
    settings = _settings(precision="fp32" if state.scaler is None else "fp16", micro_batch_size=2, **changes)
    outcome = train_step(model, objective, [0, 1, 2, 3], settings, state)
    state.step += 1
    return outcome


@pytest.mark.parametrize("each", [False, True])
def test_preconditioned_and_clipped_as_without_a_scale(each: bool) -> None:
    plain, scaled = _state("fp32"), _state("fp16")
    assert scaled[1].scaler is not None and scaled[1].scaler.get_scale() == 65536
    for _ in range(3):
        assert _step(*plain, _Linear(), precondition_each=each) == _step(*scaled, _Linear(), precondition_each=each)
    assert same_bytes(snapshot(plain[0]), snapshot(scaled[0])) and scaled[1].skipped == 0


def test_an_overflow_moves_nothing_halves_the_scale_and_is_counted() -> None:
    model, state = _state("fp16", scale=2.0**126)
    before, lr = snapshot(model), state.scheduler.get_last_lr()
    loss, norm = _step(model, state, _Linear(slope=100.0))
    assert math.isfinite(loss) and norm == math.inf and state.skipped == 1
    assert state.scaler is not None and state.scaler.get_scale() == 2.0**125
    assert same_bytes(before, snapshot(model)) and state.scheduler.get_last_lr() == lr
    while state.skipped == state.step:
        _step(model, state, _Linear(slope=100.0))
    assert state.step < 20 and not same_bytes(before, snapshot(model)) and state.scheduler.get_last_lr() < lr


class _Endless(_Linear):
    """A finite loss whose gradient is finite at no scale."""

    def loss(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        (first, *_) = [p for p in model.parameters() if p.requires_grad]
        return super().loss(model, indices) + (first * 0).abs().sqrt().sum()


def test_a_scale_that_underflows_is_a_divergence() -> None:
    model, state = _state("fp16")
    before = snapshot(model)
    with pytest.raises(Diverged, match="the gradient of .*lora_A"):
        for _ in range(100):
            _step(model, state, _Endless())
    assert state.scaler is not None and state.skipped == 30 and state.scaler.get_scale() < SMALLEST_SCALE
    assert same_bytes(before, snapshot(model))


def test_a_norm_that_no_scale_makes_finite_is_one_too() -> None:
    model, state = _state("fp16", scale=1.0)
    with pytest.raises(Diverged, match="the gradient norm"):
        state.preconditioner = None
        _step(model, state, _Linear(slope=3e37))

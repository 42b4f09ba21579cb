"""The optimisation loop against a hand-written one (torch AdamW, transformers' linear schedule), bit for bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import get_linear_schedule_with_warmup

from nora.adapters import Preconditioner, initialize_, lora_layers
from nora.streams import generator
from nora.tasks.example import Example
from nora.training.batches import encode_example
from nora.training.loop import Diverged, LoopSettings, LoopState, make_state, num_steps, train, train_step
from nora.training.objectives import ClassificationObjective
from twins import same_bytes, snapshot, tiny_opt, with_lora


def _settings(**changes: Any) -> LoopSettings:
    values: dict[str, Any] = {
        "lr": 0.01,
        "batch_size": 4,
        "epochs": 2,
        "schedule": "linear",
        "warmup_steps": 0,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "precision": "fp32",
    }
    return LoopSettings(**{**values, **changes})


def _model(dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> Any:
    model = with_lora(tiny_opt(dtype=dtype, vocab=1024, dropout=dropout)).to(dtype)
    initialize_(model, "nystrom", xi=0.1)
    return model


def _order(epoch: int) -> Tensor:
    return torch.randperm(10, generator=generator(0, "order", f"epoch {epoch}"))


def _seed(step: int) -> None:
    torch.manual_seed(step)


@pytest.fixture
def objective(tokenizer: Any, examples: list[Example]) -> ClassificationObjective:
    """Ten examples: batches of 4, 4 and 2."""
    encoded = [encode_example(e, tokenizer, max_length=100) for e in examples * 2]
    return ClassificationObjective(encoded, [e.gold for e in examples * 2], 0, True)


def _train(
    model: Any,
    objective: Any,
    settings: LoopSettings,
    state: LoopState,
    evaluate: Callable[[nn.Module], dict[str, Any]] = lambda model: {"loss": 1.0},
    before_step: Callable[[int], None] = _seed,
) -> list[Any]:
    infos: list[Any] = []
    train(
        model,
        objective,
        settings,
        state,
        order=_order,
        before_step=before_step,
        evaluate=evaluate,
        on_step=infos.append,
        on_boundary=lambda state: None,
    )
    return infos


def _keep_last() -> Callable[[nn.Module], dict[str, Any]]:
    """A dev loss that falls, so that the last epoch is the best."""
    losses = iter([3.0, 2.0, 1.0, 0.5])
    return lambda model: {"loss": next(losses)}


def test_equals_a_hand_written_loop_bitwise(objective: ClassificationObjective) -> None:
    """Two epochs, dropout on, last batch of an epoch smaller, clipping active."""
    settings = _settings(max_grad_norm=0.05, weight_decay=0.01)
    ours, reference = _model(dropout=0.1), _model(dropout=0.1)
    state = make_state(ours, settings, num_examples=10, preconditioner=None)
    infos = _train(ours, objective, settings, state, _keep_last())

    parameters = [p for p in reference.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 6)
    reference.train()
    seen = []
    step = 0
    for epoch in range(2):
        order = _order(epoch).tolist()
        for start in (0, 4, 8):
            indices = order[start : start + 4]
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = objective.loss(reference, indices) / len(indices)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 0.05)
            seen.append((loss.item(), norm.item(), optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.step()
            step += 1
    assert [(i.loss, i.grad_norm, i.lr) for i in infos] == seen
    assert all(norm > 0.05 for _, norm, _ in seen), "clipping was active"
    assert same_bytes(snapshot(ours), snapshot(reference))
    assert [i.epoch for i in infos] == [0, 0, 0, 1, 1, 1] and infos[-1].total_steps == 6


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_over_all_factors_at_once_is_bitwise_adamw_one_by_one(dtype: torch.dtype) -> None:
    """Weights after five steps with weight decay; fewer than half of the operations."""
    settings, counts, ends = _settings(weight_decay=0.01), [], []
    for plain in (False, True):
        model = _model(dtype)
        state, draw = (
            make_state(model, settings, num_examples=64, preconditioner=None),
            torch.Generator().manual_seed(3),
        )
        if plain:
            given = {k: state.optimizer.param_groups[0][k] for k in ("lr", "betas", "eps", "weight_decay")}
            state.optimizer = torch.optim.AdamW(state.parameters.values(), foreach=False, **given)
        for _ in range(5):
            for p in state.parameters.values():
                p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)
            with _Operations() as operations:
                state.optimizer.step()
        counts.append(operations.count)
        ends.append(list(state.parameters.values()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True)) and 2 * counts[0] < counts[1]
    assert any(p.abs().max() > 0 for p in ends[0])


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_micro_batches_give_the_same_step(micro: int, objective: ClassificationObjective) -> None:
    """Float64: memory is bounded, the effective batch and the step are not changed (1e-10)."""
    whole, parts = _model(torch.float64), _model(torch.float64)
    for model, size in ((whole, None), (parts, micro)):
        settings = _settings(micro_batch_size=size, batch_size=5)
        layers = lora_layers(model)
        state = make_state(model, settings, num_examples=10, preconditioner=Preconditioner(layers))
        _train(model, objective, settings, state, _keep_last())
    moved = 0.0
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert (one - other).abs().max() < 1e-10, name
        moved = max(moved, float(one.detach().abs().max())) if "lora_B" in name else moved
    assert moved > 1e-3


def test_preconditioner_runs_once_per_step_after_accumulation_and_before_clipping(
    objective: ClassificationObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model()
    settings = _settings(micro_batch_size=1, epochs=1)
    preconditioner = Preconditioner(lora_layers(model))
    state = make_state(model, settings, num_examples=10, preconditioner=preconditioner)
    events: list[str] = []

    def spy(owner: Any, name: str, label: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            events.append(label)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    spy(torch.Tensor, "backward", "backward")
    spy(preconditioner, "step", "precondition")
    spy(torch.nn.utils, "clip_grad_norm_", "clip")
    state.optimizer.register_step_pre_hook(lambda *_: events.append("step"))
    spy(state.scheduler, "step", "schedule")
    _train(model, objective, settings, state)
    tail = ["precondition", "clip", "step", "schedule"]
    assert events == ["backward"] * 4 + tail + ["backward"] * 4 + tail + ["backward"] * 2 + tail


class _Broken:
    """A loss that is fine until the given call, then not finite (or finite with a non-finite gradient)."""

    num_examples = 10

    def __init__(self, call: int, kind: str) -> None:
        self.calls, self.bad, self.kind = 0, call, kind

    def count(self, indices: Any) -> int:
        return len(indices)

    def loss(self, model: nn.Module, indices: Any) -> Tensor:
        self.calls += 1
        parameters = [p for p in model.parameters() if p.requires_grad]
        total = sum((p**2).sum() for p in parameters)
        assert isinstance(total, Tensor)
        if self.calls != self.bad:
            return total
        return total * math.nan if self.kind == "loss" else total + (parameters[1] * 0).abs().sqrt().sum()


@pytest.mark.parametrize(("each", "times"), [(False, 1), (True, 2)])
def test_the_preconditioner_runs_once_a_step_or_after_every_micro_batch(
    each: bool, times: int, objective: ClassificationObjective
) -> None:
    model = _model()
    preconditioner = Preconditioner(lora_layers(model))
    settings = _settings(micro_batch_size=2, precondition_each=each)
    state = make_state(model, settings, num_examples=4, preconditioner=preconditioner)
    train_step(model, objective, [0, 1, 2, 3], settings, state)
    assert preconditioner.steps == times


@pytest.mark.parametrize("kind, tensor", [("loss", "the loss"), ("gradient", "the gradient of .*lora_B")])
@pytest.mark.parametrize("precondition", [False, True])
def test_a_non_finite_loss_or_gradient_ends_the_run_before_anything_moves(
    kind: str, tensor: str, precondition: bool
) -> None:
    """The fourth micro-batch is bad: step 0 (two micro-batches) was taken, step 1 is not."""
    model = _model()
    settings = _settings(micro_batch_size=2)
    preconditioner = Preconditioner(lora_layers(model)) if precondition else None
    state = make_state(model, settings, num_examples=10, preconditioner=preconditioner)
    objective = _Broken(4, kind)
    train_step(model, objective, [0, 1, 2, 3], settings, state)
    state.step = 1
    before = snapshot(model)
    moments = [{k: v.clone() for k, v in s.items()} for s in state.optimizer.state.values()]
    lr = state.scheduler.get_last_lr()
    with pytest.raises(Diverged, match=tensor) as error:
        train_step(model, objective, [4, 5, 6, 7], settings, state)
    assert error.value.step == 1
    assert same_bytes(before, snapshot(model))
    after = list(state.optimizer.state.values())
    assert all(torch.equal(a[k], b[k]) for a, b in zip(moments, after, strict=True) for k in a)
    assert state.scheduler.get_last_lr() == lr


class _Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for a number of the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precondition", [False, True])
def test_steps_read_at_once_are_the_steps_read_one_by_one(
    precondition: bool, objective: ClassificationObjective
) -> None:
    """Read at steps 4 and at the ends of both epochs, 3 and 6; in float64 to its rounding."""
    reached, waits = [], []
    for every in (1, 4):
        settings = _settings(max_grad_norm=0.05, weight_decay=0.01, micro_batch_size=2, read_every=every)
        model = _model(torch.float64, dropout=0.1)
        preconditioner = Preconditioner(lora_layers(model)) if precondition else None
        state = make_state(model, settings, num_examples=10, preconditioner=preconditioner)
        infos: list[Any] = []
        boundaries: list[tuple[int, int]] = []
        with _Waits() as counted:
            train(
                model, objective, settings, state, order=_order, before_step=_seed, evaluate=_keep_last(),
                on_step=infos.append, on_boundary=lambda state: boundaries.append((state.step, len(infos))),  # noqa: B023
            )  # fmt: skip
        assert boundaries == [(n, n) for n in ((1, 2, 3, 4, 5, 6) if every == 1 else (3, 4, 6))]
        reached.append((infos, [p.detach() for p in state.parameters.values()], state.dev_log, state.losses))
        waits.append(counted.count)
    (one, those, dev, losses), (other, these, same_dev, same_losses) = reached
    for a, b in zip(one, other, strict=True):
        assert (a.step, a.epoch, a.lr) == (b.step, b.epoch, b.lr) and isinstance(b.loss, float)
        assert b.loss == pytest.approx(a.loss, rel=1e-12) and b.grad_norm == pytest.approx(a.grad_norm, rel=1e-12)
    for a, b in zip(those, these, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert [entry["epoch"] for entry in dev] == [entry["epoch"] for entry in same_dev] == [0, 1]
    assert same_losses == pytest.approx(losses, rel=1e-12)
    # A preconditioner asks whether its factorisations held: a wait of its own.
    assert waits[0] >= 3 * 6 and (waits[1] == 0) == (not precondition), waits


@pytest.mark.parametrize("kind, tensor", [("loss", "the loss"), ("gradient", "the gradient norm")])
def test_a_step_read_later_that_is_not_finite_has_moved_nothing_nor_has_any_after_it(kind: str, tensor: str) -> None:
    """The fifth batch of six is bad, and all six are read at once."""
    settings = _settings(epochs=6, batch_size=10, weight_decay=0.01)
    ended, told = [], []
    for every in (1, 6):
        model, infos = _model(torch.float64), []
        own = dataclasses.replace(settings, read_every=every)
        state = make_state(model, own, num_examples=10, preconditioner=None)
        with pytest.raises(Diverged) as error:
            train(
                model, _Broken(5, kind), own, state, order=_order, before_step=_seed, evaluate=None,
                on_step=infos.append, on_boundary=lambda state: None,
            )  # fmt: skip
        assert error.value.step == state.step == len(infos) == len(state.losses) == 4
        ended.append(snapshot(model))
        told.append(error.value.tensor)
    assert told[1] == tensor
    for name, value in ended[0].items():
        torch.testing.assert_close(ended[1][name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "losses, best", [([3.0, 1.0, 2.0], 1), ([1.0, 1.0, 2.0], 0), ([3.0, math.nan, 2.0], 2), ([math.nan, 4.0, 5.0], 1)]
)
def test_the_epoch_of_lowest_dev_loss_is_restored(
    losses: list[float], best: int, objective: ClassificationObjective
) -> None:
    model = _model()
    settings = _settings(epochs=3)
    state = make_state(model, settings, num_examples=10, preconditioner=None)
    adapters: list[dict[str, Tensor]] = []

    def evaluate(m: nn.Module) -> dict[str, Any]:
        adapters.append(snapshot(m))
        return {"loss": losses[len(adapters) - 1]}

    _train(model, objective, settings, state, evaluate)
    assert state.best_epoch == best
    assert same_bytes(adapters[best], snapshot(model))
    assert len(adapters) == 3 and not same_bytes(adapters[0], adapters[1])
    assert [entry["epoch"] for entry in state.dev_log] == [0, 1, 2]


@pytest.mark.parametrize("n, batch, epochs, expected", [(10, 4, 2, 6), (8, 4, 3, 6), (1000, 8, 5, 625), (3, 8, 1, 1)])
def test_number_of_steps(n: int, batch: int, epochs: int, expected: int) -> None:
    assert num_steps(n, _settings(batch_size=batch, epochs=epochs)) == expected


def test_no_epochs_leave_the_start(objective: ClassificationObjective) -> None:
    model = _model()
    before = snapshot(model)
    settings = _settings(epochs=0)
    _train(model, objective, settings, make_state(model, settings, num_examples=10, preconditioner=None))
    assert same_bytes(before, snapshot(model))


@pytest.mark.parametrize("schedule, warmup", [("linear", 2), ("cosine", 1), ("constant", 0)])
def test_learning_rates_by_formula(schedule: str, warmup: int, objective: ClassificationObjective) -> None:
    model = _model()
    settings = _settings(schedule=schedule, warmup_steps=warmup)
    infos = _train(model, objective, settings, make_state(model, settings, num_examples=10, preconditioner=None))

    def factor(t: int) -> float:
        if t < warmup:
            return t / warmup
        done = (t - warmup) / (6 - warmup)
        return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[schedule]

    assert [i.lr for i in infos] == pytest.approx([0.01 * factor(t) for t in range(6)], abs=1e-12)


def test_bf16_is_an_autocast_of_the_loss_alone(objective: ClassificationObjective) -> None:
    """Factors and moments stay float32; evaluation runs outside the autocast."""
    seen: dict[str, bool] = {}

    class Spy:
        num_examples = 10
        count = objective.count

        def loss(self, model: nn.Module, indices: Any) -> Tensor:
            seen["loss"] = torch.is_autocast_enabled("cpu")
            return objective.loss(model, indices)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        seen["evaluate"] = torch.is_autocast_enabled("cpu")
        return {"loss": 1.0}

    model = _model()
    settings = _settings(precision="bf16", epochs=1)
    state = make_state(model, settings, num_examples=10, preconditioner=None)
    _train(model, Spy(), settings, state, evaluate)
    assert seen == {"loss": True, "evaluate": False}
    assert {p.dtype for p in state.parameters.values()} == {torch.float32}


def _steps(objective: Any, dropout: float, *, compiled: bool, batch: int = 10) -> tuple[list[Any], dict[str, Tensor]]:
    settings = _settings(compile=compiled, lr=1e-3, batch_size=batch)
    model = _model(torch.float64, dropout)
    state = make_state(model, settings, num_examples=10, preconditioner=None)
    infos = _train(model, objective, settings, state, _keep_last())
    assert all(m._compiled_call_impl is None for m in model.modules()), "left as it was"
    return infos, snapshot(model)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("batch", [10, pytest.param(4, marks=pytest.mark.slow)])
def test_compiled_layers_give_the_same_numbers(batch: int, objective: ClassificationObjective) -> None:
    """Dropout on, rows side by side; float64, to its rounding. The layers were compiled, and not for every length anew:
    as many graphs as there are forms of a call (the first layer's input needs no gradient; padded and packed rows)."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    (one, these), (other, those) = (_steps(objective, 0.1, compiled=c, batch=batch) for c in (False, True))
    for a, b in zip(one, other, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-11) and b.grad_norm == pytest.approx(a.grad_norm, rel=1e-9)
    for name, value in these.items():
        torch.testing.assert_close(those[name], value, rtol=1e-9, atol=1e-11)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2 if batch == 10 else 2 <= graphs <= 6, graphs


def test_layers_that_cannot_be_compiled_run_as_they_are_and_a_line_says_so(
    objective: ClassificationObjective, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here\nand more of it")

    torch._dynamo.reset()
    plain, _ = _steps(objective, 0.0, compiled=False)
    with pytest.MonkeyPatch.context() as patch:
        compile_ = nn.Module.compile
        patch.setattr(nn.Module, "compile", lambda self, **options: compile_(self, backend=refuse, dynamic=True))
        infos, _ = _steps(objective, 0.0, compiled=True)
    assert [(i.loss, i.grad_norm) for i in infos] == [(i.loss, i.grad_norm) for i in plain]
    (record,) = [r for r in caplog.records if r.name == "nora.training.compiled"]
    assert "exec.compile" in record.message and "no compiler here" in record.message and "\n" not in record.message

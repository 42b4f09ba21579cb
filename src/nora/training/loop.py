"""The one optimisation loop.

Order of operations, per optimiser step t:
  1. the step's randomness (dropout) is set from its own stream        before_step(t)
  2. micro-batches: forward, loss / count of the whole batch, backward  (gradients accumulate)
  3. a non-finite loss ends the run here, before anything moves         Diverged
  4. gradients are preconditioned, once, from the factors as they are   NoRA+, LoRA-P
  5. gradients are clipped to a global norm; a non-finite norm ends the run
  6. optimiser step, then learning-rate schedule
     (fp16: steps 2–4 see the gradients of the scaled loss, which are divided by the scale before 5: preconditioning is
     linear; where one of them overflowed no step is taken, the scale is halved and the schedule waits)
  7. logging; a checkpoint when due (the state is complete: 1–6 of step t+1 follow from it)
     (``read_every``: losses and norms of so many steps are read from the device at once; a step that 3 or 5 would have
     refused, and all after it, move nothing there: the optimiser is told on the device)
and at the end of each epoch (or every so many steps): evaluation on dev; the adapter with the lowest dev loss is kept
and restored at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from nora.adapters import Preconditioner
from nora.adapters.layers import trainable_parameters
from nora.files import Json
from nora.training.compiled import compiled_layers

if TYPE_CHECKING:
    from nora.training.replicas import Replicas


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 1e-4  # of the loss in fp16, fairseq's: 30 halvings of torch's 65,536 without a finite gradient


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Hyper-parameters of one run; ``micro_batch_size`` bounds memory and never changes the effective batch."""

    lr: float
    batch_size: int
    epochs: int
    schedule: str
    warmup_steps: int
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float | None
    precision: str
    max_steps: int | None = None
    micro_batch_size: int | None = None
    evaluate_every: int | None = None
    """Steps between evaluations on dev; None: at the end of each epoch."""
    keep_best: bool = True
    """Whether the adapter of lowest dev loss is loaded at the end, or the last one stays."""
    precondition_each: bool = False
    """After every micro-batch, as the authors' released code does, instead of once per step."""
    read_every: int = 1
    """Steps whose loss and norm are read from the device together; nothing waits for it in between. A divisor of the
    steps between checkpoints: those are taken where everything is known."""
    compile: bool = False
    """Whether the base's repeated layers are compiled; the numbers change by rounding at most."""


class Objective(Protocol):
    """What is minimised: a sum over examples (or their tokens) divided by its count."""

    @property
    def num_examples(self) -> int: ...

    def count(self, indices: Sequence[int]) -> int:
        """The divisor of the loss over these examples."""
        ...

    def loss(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        """The summed loss of these examples, nats."""
        ...


class BankedObjective(Objective, Protocol):
    """The same for several adapters over one base at once."""

    def losses(self, model: nn.Module, indices: Sequence[int], members: int) -> Tensor:
        """The summed loss of these examples [members], nats, for a model that takes their rows ``members`` times."""
        ...


class Diverged(Exception):
    """A non-finite loss or gradient (in fp16: one that no scale of the loss makes finite): no step was taken."""

    def __init__(self, step: int, tensor: str) -> None:
        super().__init__(f"step {step}: {tensor} is not finite; no step was taken")
        self.step = step
        self.tensor = tensor


@dataclass
class LoopState:
    """Everything the loop needs to go on from a step boundary; ``step`` counts the steps taken."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    preconditioner: Preconditioner | None
    scaler: torch.amp.GradScaler | None = None
    """The loss's scale in fp16."""
    ended: Tensor | None = None
    """Where several steps are read at once: 1.0 on the device from the first loss or norm that is not finite."""
    skipped: int = 0
    """Steps among ``step`` that moved nothing: a scaled gradient overflowed."""
    step: int = 0
    epoch_loss: float = 0.0
    """Sum of the steps' losses since the last evaluation, and their number."""
    steps_since: int = 0
    losses: list[float] = field(default_factory=list)
    """Mean loss of every step taken."""
    dev_log: list[dict[str, Json]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best_evaluation(self) -> int | None:
        """Index into ``dev_log`` of the lowest dev loss (the earlier of equals), None before the first evaluation."""
        finite = [(entry["loss"], i) for i, entry in enumerate(self.dev_log) if math.isfinite(entry["loss"])]
        return min(finite)[1] if finite else None

    @property
    def best_epoch(self) -> int | None:
        """The epoch of that evaluation."""
        best = self.best_evaluation
        return None if best is None else int(self.dev_log[best]["epoch"])


@dataclass(frozen=True)
class StepInfo:
    """What one step looked like: mean loss (nats), gradient norm after preconditioning and before clipping, lr."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    grad_norm: float
    lr: float


def num_steps(num_examples: int, settings: LoopSettings) -> int:
    """Optimiser steps of the whole run; the last batch of an epoch may be smaller."""
    steps = settings.epochs * math.ceil(num_examples / settings.batch_size)
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def make_state(
    model: nn.Module,
    settings: LoopSettings,
    *,
    num_examples: int,
    preconditioner: Preconditioner | None,
    make: Callable[..., torch.optim.Optimizer] | None = None,
) -> LoopState:
    """A fresh optimiser (AdamW, or what ``make(model, …)`` gives) and schedule over the trainable parameters."""
    parameters = trainable_parameters(model)
    given: dict[str, Any] = {
        "lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay
    }  # fmt: skip
    together = settings.read_every > 1 and make is None and settings.precision != "fp16"
    # foreach: the very bits by fewer operations; of itself torch does so on a GPU alone. Fused: it alone can be told on
    # the device to stand still.
    how: dict[str, Any] = {"fused": True} if together else {"foreach": True}
    adamw = partial(torch.optim.AdamW, parameters.values(), **how)
    optimizer = (adamw if make is None else partial(make, model))(**given)
    scheduler = get_scheduler(
        settings.schedule,
        optimizer,
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=max(1, num_steps(num_examples, settings)),
    )
    device = next(iter(parameters.values())).device
    scaler = torch.amp.GradScaler(device.type) if settings.precision == "fp16" else None
    ended = torch.zeros((), device=device) if together else None
    return LoopState(parameters, optimizer, scheduler, preconditioner, scaler, ended)


def first_non_finite(parameters: dict[str, nn.Parameter]) -> str:
    for name, parameter in parameters.items():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name}"
    return "the gradient norm"


def _skip_step(state: LoopState) -> None:
    """An overflow in fp16: the scale is halved, nothing moves. Diverged where a smaller scale is no help."""
    assert state.scaler is not None
    before = state.scaler.get_scale()
    state.scaler.update()
    state.skipped += 1
    if not SMALLEST_SCALE <= state.scaler.get_scale() < before:  # not halved: only the norm is beyond float32
        raise Diverged(state.step, first_non_finite(state.parameters))


def train_step(
    model: nn.Module,
    objective: Objective,
    indices: Sequence[int],
    settings: LoopSettings,
    state: LoopState,
    replicas: Replicas | None = None,
) -> tuple[float | Tensor, float | Tensor]:
    """Steps 2–6 of the order above on one batch; returns the mean loss and the gradient norm before clipping.

    The norm is infinite where an overflow in fp16 made it skip the step. Both are still on the device, and not known to
    be finite, where several steps are read at once.
    """
    device = next(iter(state.parameters.values())).device
    half = AUTOCAST.get(settings.precision)
    autocast = nullcontext() if half is None else torch.autocast(device.type, dtype=half)
    count = max(1, objective.count(indices))  # a batch of cut-off texts alone has nothing to learn: its loss is 0
    if replicas is not None:
        indices = replicas.share(indices)
    micro = settings.micro_batch_size or max(1, len(indices))
    state.optimizer.zero_grad(set_to_none=True)
    total: Any = 0.0
    for start in range(0, len(indices), micro):
        with autocast:
            loss = objective.loss(model, indices[start : start + micro]) / count
        total += loss.detach() if state.ended is not None else loss.item()
        if state.ended is None and not math.isfinite(total) and replicas is None:
            raise Diverged(state.step, "the loss")
        (loss if state.scaler is None else state.scaler.scale(loss)).backward()
        if settings.precondition_each and state.preconditioner is not None:
            state.preconditioner.step()
    if replicas is not None:
        total = replicas.total(total, device)
        if not math.isfinite(total):  # every process stops: one that went on alone would wait for ever
            raise Diverged(state.step, "the loss")
        replicas.sum_gradients(state.parameters.values())
    if state.preconditioner is not None and not settings.precondition_each:
        state.preconditioner.step()
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm
    if state.ended is not None:
        norm = torch.nn.utils.clip_grad_norm_(state.parameters.values(), limit)
        state.ended.clamp_(min=(~torch.isfinite(total + norm)).to(state.ended.dtype))
        state.optimizer.found_inf = state.ended  # type: ignore[attr-defined]  # the GradScaler's own way to say so
        state.optimizer.step()
        state.scheduler.step()
        return total, norm
    try:  # refused before anything is scaled: a NaN norm would spoil every gradient, and with it the culprit's name
        found = float(torch.nn.utils.clip_grad_norm_(state.parameters.values(), limit, error_if_nonfinite=True))
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        if state.scaler is None:
            raise Diverged(state.step, first_non_finite(state.parameters)) from None
        _skip_step(state)
        return total, math.inf
    if state.scaler is None:
        state.optimizer.step()
    else:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    state.scheduler.step()
    return total, found


def train(
    model: nn.Module,
    objective: Objective,
    settings: LoopSettings,
    state: LoopState,
    *,
    order: Callable[[int], Tensor],
    before_step: Callable[[int], None],
    evaluate: Callable[[nn.Module], dict[str, Json]] | None,
    on_step: Callable[[StepInfo], None],
    on_boundary: Callable[[LoopState], None],
    replicas: Replicas | None = None,
) -> None:
    """Runs ``state`` to the end of the last epoch and loads the adapter of lowest dev loss.

    ``order(epoch)`` gives the epoch's permutation of the examples; ``evaluate`` the dev metrics with "loss" among
    them (None: there is no dev set, and the adapter stays as the last step left it); ``on_boundary`` is called after
    every step, when the state is complete; with ``replicas`` this process takes its share of each batch. Raises
    Diverged.
    """
    total = num_steps(objective.num_examples, settings)
    every = 1 if state.ended is None else settings.read_every
    model.train()  # not in every step: walking all modules of a UNet costs a tenth of one
    unread: list[StepInfo] = []
    with compiled_layers(model) if settings.compile else nullcontext():
        while state.step < total:
            step = state.step + len(unread)
            epoch, indices = batch_at(step, objective.num_examples, settings, order)
            before_step(step)
            lr = float(state.scheduler.get_last_lr()[0])
            loss, norm = train_step(model, objective, indices, settings, state, replicas)
            unread.append(StepInfo(step + 1, total, epoch, loss, norm, lr))  # type: ignore[arg-type]
            due = evaluate is not None and evaluation_due(step + 1, objective.num_examples, settings)
            if not (due or (step + 1) % every == 0 or step + 1 == total):
                continue
            for info in unread if state.ended is None else _read(unread):
                if not (math.isfinite(info.loss) and math.isfinite(info.grad_norm)) and state.ended is not None:
                    raise Diverged(state.step, "the gradient norm" if math.isfinite(info.loss) else "the loss")
                on_step(step_taken(state, info))
            unread.clear()
            if due and evaluate is not None:
                keep_if_best(state, epoch, evaluate(model), settings.keep_best)
                model.train()
            on_boundary(state)
    load_best(state, settings)


def _read(steps: Sequence[StepInfo]) -> list[StepInfo]:
    """The same with their losses and norms from the device, by one copy."""
    values = torch.stack([torch.as_tensor(x) for s in steps for x in (s.loss, s.grad_norm)]).tolist()
    return [replace(s, loss=values[2 * i], grad_norm=values[2 * i + 1]) for i, s in enumerate(steps)]


def batch_at(
    step: int, num_examples: int, settings: LoopSettings, order: Callable[[int], Tensor]
) -> tuple[int, list[int]]:
    """The epoch of a step and the examples of its batch."""
    epoch, position = divmod(step, math.ceil(num_examples / settings.batch_size))
    permutation = order(epoch).tolist()
    return epoch, permutation[position * settings.batch_size : (position + 1) * settings.batch_size]


def step_taken(state: LoopState, info: StepInfo) -> StepInfo:
    """Notes a step in the state; returns what it looked like."""
    state.step = info.step
    state.epoch_loss += info.loss
    state.steps_since += 1
    state.losses.append(info.loss)
    return info


def evaluation_due(step: int, num_examples: int, settings: LoopSettings) -> bool:
    """Whether dev is evaluated after this many steps."""
    if settings.evaluate_every is None:
        return step % math.ceil(num_examples / settings.batch_size) == 0
    return step % settings.evaluate_every == 0 or step == num_steps(num_examples, settings)


@torch.no_grad()
def load_best(state: LoopState, settings: LoopSettings) -> None:
    """Puts the adapter of lowest dev loss back, where it is to be kept."""
    if state.best and settings.keep_best:
        for name, parameter in state.parameters.items():
            parameter.copy_(state.best[name])


def keep_if_best(state: LoopState, epoch: int, metrics: dict[str, Json], keep_best: bool) -> None:
    """Notes what dev says; with ``keep_best`` a copy of the adapter stays if its loss is the lowest so far."""
    entry = {"epoch": epoch, "train_loss": state.epoch_loss / state.steps_since, **metrics}
    state.dev_log.append(entry)
    state.epoch_loss, state.steps_since = 0.0, 0
    if keep_best and state.best_evaluation == len(state.dev_log) - 1:
        state.best = {name: p.detach().clone() for name, p in state.parameters.items()}

"""The loop of a bank: one forward and backward pass for all members, one batched update, each one's own books."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nora.adapters import Bank, Preconditioner
from nora.errors import Interrupted
from nora.files import Json
from nora.training.loop import (
    AUTOCAST,
    BankedObjective,
    Diverged,
    LoopSettings,
    LoopState,
    StepInfo,
    batch_at,
    evaluation_due,
    first_non_finite,
    keep_if_best,
    load_best,
    num_steps,
    step_taken,
)


@dataclass
class Member:
    """One run's side of a bank: its ordinary PEFT model, whose factors are windows on the bank's, and its state."""

    model: nn.Module
    state: LoopState
    on_step: Callable[[StepInfo], None]
    on_boundary: Callable[[LoopState], None]
    diverged: Diverged | None = None
    """How it ended, where it did not train to the end; it stays in the bank and moves no more."""


class BankOptimizer:
    """Steps 4 to 6 of the loop's order for all members at once: precondition, clip, AdamW, schedule.

    Moments are stacked as the parameters are and are views in each member's own optimiser, so that a checkpoint of a
    member is what it is for a run alone. AdamW is torch's, with a learning rate per member.
    """

    def __init__(self, bank: Bank, members: Sequence[Member], settings: LoopSettings) -> None:
        self._bank, self._members, self._settings = bank, members, settings
        first = next(iter(bank.stacks.values()))
        self._live = torch.tensor([m.diverged is None for m in members], device=first.device)
        self._steps = torch.tensor(float(members[0].state.step))
        self._moments = {name: self._stack_moments(name) for name in bank.stacks}
        self._preconditioners = self._make_preconditioners()

    def _stack_moments(self, name: str) -> tuple[Tensor, Tensor]:
        stacked = []
        for key in ("exp_avg", "exp_avg_sq"):
            stack = torch.zeros_like(self._bank.stacks[name], requires_grad=False)
            for member, moment in zip(self._members, stack, strict=True):
                own = member.state.optimizer.state[member.state.parameters[name]]
                if key in own:
                    moment.copy_(own[key])
                own[key], own["step"] = moment, self._steps
            stacked.append(stack)
        return stacked[0], stacked[1]

    def _make_preconditioners(self) -> list[Preconditioner]:
        """One per damping and normaliser, over the layers of all living members that have it."""
        alike = defaultdict(list)
        for member in self._members:
            own = member.state.preconditioner
            if own is not None and member.diverged is None:
                alike[own.damping, own.normalize, own.inverse, own.steps].append(own)
        joint = []
        for (damping, normalize, inverse, steps), group in alike.items():
            layers = [layer for own in group for layer in own.layers]
            joint.append(Preconditioner(layers, damping=damping, normalize=normalize, inverse=inverse))
            joint[-1].steps = steps
        return joint

    def end(self, member: Member, why: Diverged) -> None:
        """A member that has diverged: it and its moments stay as they are."""
        member.diverged = why
        self._live[self._members.index(member)] = False
        self._preconditioners = self._make_preconditioners()

    def zero_grad(self) -> None:
        for stack in self._bank.stacks.values():
            assert stack.grad is not None
            stack.grad.zero_()

    @torch.no_grad()
    def step(self) -> list[float]:
        """Moves every living member; returns the gradient norms before clipping (a dead one's: NaN)."""
        settings, stacks = self._settings, self._bank.stacks
        gradients = {name: stack.grad for name, stack in stacks.items() if stack.grad is not None}
        self._still(gradients)
        for preconditioner in self._preconditioners:
            preconditioner.step()
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()])
        norms = squares.sum(0).sqrt()  # [K]
        read = norms.tolist()
        for member, norm in zip(self._members, read, strict=True):
            if member.diverged is None and not math.isfinite(norm):
                self.end(member, Diverged(member.state.step, first_non_finite(member.state.parameters)))
        self._still(gradients)
        if settings.max_grad_norm is not None:
            clip = (settings.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
            self._scale(gradients, torch.where(self._live, clip, torch.zeros_like(clip)))
        self._adamw(gradients)
        for member in self._members:
            if member.diverged is None:
                member.state.optimizer._opt_called = True  # type: ignore[attr-defined]  # its step was taken here
                member.state.scheduler.step()
                if member.state.preconditioner is not None:
                    member.state.preconditioner.steps += 1
        return [norm if m.diverged is None else math.nan for m, norm in zip(self._members, read, strict=True)]

    def _still(self, gradients: dict[str, Tensor]) -> None:
        """Gradients of the dead are zero, whatever was in them."""
        if not all(m.diverged is None for m in self._members):
            for gradient in gradients.values():
                gradient.masked_fill_(_along(~self._live, gradient), 0.0)

    @staticmethod
    def _scale(gradients: dict[str, Tensor], factor: Tensor) -> None:
        for gradient in gradients.values():
            gradient.mul_(_along(factor, gradient).to(gradient.dtype))

    def _adamw(self, gradients: dict[str, Tensor]) -> None:
        settings = self._settings
        beta1, beta2 = settings.betas
        self._steps += 1
        t = float(self._steps)
        rates = torch.tensor([m.state.optimizer.param_groups[0]["lr"] for m in self._members], dtype=torch.float64)
        rates = rates.to(self._live.device) * self._live
        for name, gradient in gradients.items():
            stack, (mean, square) = self._bank.stacks[name], self._moments[name]
            rate = _along(rates, stack)  # 0 of a dead member: it stays, whatever becomes of its moments
            stack.mul_((1 - rate * settings.weight_decay).to(stack.dtype))
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            size = (square.sqrt() / math.sqrt(1 - beta2**t)).add_(settings.eps)
            stack.sub_((rate / (1 - beta1**t)).to(stack.dtype) * (mean / size))


def _along(each: Tensor, stack: Tensor) -> Tensor:
    """[K] shaped to multiply a stack [K, …]."""
    return each.view(-1, *[1] * (stack.dim() - 1))


def _at_boundary(members: Sequence[Member]) -> None:
    """Every member's boundary. Interrupted only when all have saved this step: the order may come between two."""
    calm = [member for member in members if not _stops(member)]
    if len(calm) < len(members):
        for member in calm:
            _stops(member)
        raise Interrupted(members[0].state.step)


def _stops(member: Member) -> bool:
    try:
        member.on_boundary(member.state)
    except Interrupted:
        return True
    return False


def bank_step(
    bank: Bank,
    objective: BankedObjective,
    indices: Sequence[int],
    settings: LoopSettings,
    members: Sequence[Member],
    optimizer: BankOptimizer,
) -> list[tuple[float, float]]:
    """One step of all living members on one batch: their mean losses and gradient norms before clipping.

    A member whose loss or gradient is not finite takes no step and is ended; rows of different members never meet, so
    the others' numbers are what they are beside a healthy one.
    """
    half = AUTOCAST.get(settings.precision)
    device = next(bank.parameters()).device
    count = max(1, objective.count(indices))
    micro = settings.micro_batch_size or max(1, len(indices))
    optimizer.zero_grad()
    totals = [0.0] * len(members)
    for start in range(0, len(indices), micro):
        with nullcontext() if half is None else torch.autocast(device.type, dtype=half):
            losses = objective.losses(bank, indices[start : start + micro], len(members)) / count
        finite = torch.isfinite(losses.detach())
        torch.where(finite, losses, torch.zeros_like(losses)).sum().backward()
        totals = [total + loss for total, loss in zip(totals, losses.tolist(), strict=True)]
    for member, total in zip(members, totals, strict=True):
        if member.diverged is None and not math.isfinite(total):
            optimizer.end(member, Diverged(member.state.step, "the loss"))
    return list(zip(totals, optimizer.step(), strict=True))


def train_bank(
    bank: Bank,
    objective: BankedObjective,
    settings: LoopSettings,
    members: Sequence[Member],
    *,
    order: Callable[[int], Tensor],
    before_step: Callable[[int], None],
    evaluate: Callable[[nn.Module, int], list[dict[str, Json]]] | None = None,
) -> None:
    """Trains all members from the step they share to the end, as ``loop.train`` does one: the same order of rows, the
    same dropout masks, the same numbers to rounding; ``evaluate`` gives the dev metrics of all of them in one pass. A
    member that diverges is told in ``Member.diverged``."""
    total = num_steps(objective.num_examples, settings)
    optimizer = BankOptimizer(bank, members, settings)
    step = members[0].state.step
    bank.train()
    while step < total and any(m.diverged is None for m in members):
        epoch, indices = batch_at(step, objective.num_examples, settings, order)
        before_step(step)
        rates = [float(m.state.scheduler.get_last_lr()[0]) for m in members]
        taken = bank_step(bank, objective, indices, settings, members, optimizer)
        step += 1
        living = [(m, *t, lr) for m, t, lr in zip(members, taken, rates, strict=True) if m.diverged is None]
        for member, loss, norm, lr in living:
            member.on_step(step_taken(member.state, StepInfo(step, total, epoch, loss, norm, lr)))
        if living and evaluate is not None and evaluation_due(step, objective.num_examples, settings):
            for member, metrics in zip(members, evaluate(bank, len(members)), strict=True):
                if member.diverged is None:
                    keep_if_best(member.state, epoch, metrics, settings.keep_best)
        _at_boundary([member for member, *_ in living])
    for member in members:
        if member.diverged is None:
            load_best(member.state, settings)

"""What the kinds of run share: what a run is given and gives back, and what happens around its steps."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from nora import streams
from nora.adapters import Preconditioner, lora_layers
from nora.config.schema import DreamboothProtocol, ExecSpec, FewShotProtocol, InstructProtocol, MethodSpec
from nora.errors import Interrupted
from nora.store.attempt import Attempt
from nora.training.loop import Diverged, LoopSettings, LoopState, StepInfo

if TYPE_CHECKING:
    from nora.training.replicas import Replicas


@dataclass(frozen=True)
class Update:
    """One line of progress."""

    phase: str
    step: int
    total: int
    values: dict[str, float]


class Checkpoints(Protocol):
    """States between optimiser steps (execution/checkpoint.py)."""

    def save(self, state: LoopState) -> None:
        """Takes a copy of the whole loop state, written beside the training."""
        ...

    def join(self) -> None:
        """Waits until what was saved is on disk; OSError if it could not be written."""
        ...

    def newest(self) -> Path | None:
        """The newest valid checkpoint of an earlier attempt."""
        ...

    def restore(self, path: Path, state: LoopState) -> None:
        """Puts a checkpoint into a fresh state of the same model and settings."""
        ...


@dataclass(frozen=True)
class RunContext:
    """Where a run executes; nothing in here may change a number."""

    checkout: Path
    settings: ExecSpec
    device: torch.device
    attempt: Attempt
    checkpoints: Checkpoints
    """Where this attempt's state is saved, and that of the attempts before it found."""
    report: Callable[[Update], None]
    stop_requested: Callable[[], bool] = lambda: False
    """Asked at step boundaries: True means save the state and raise Interrupted."""
    keep_base: bool = False
    """More runs on the same base follow in this process."""
    replicas: Replicas | None = None
    """This process's place among those that share the run's batches."""
    show_picture: Callable[[str, bytes, int], None] = lambda name, data, step: None
    """A JPEG made on the way, for the attempt's folder and the mirror."""


@dataclass(frozen=True)
class Outcome:
    """What a run found out. ``files``: label → (stem, suffix, content, keep it on disk)."""

    metrics: dict[str, Any]
    proof: dict[str, Any]
    files: dict[str, tuple[str, str, bytes, bool]]
    diverged: dict[str, Any] | None = None
    run: dict[str, Any] = field(default_factory=dict)


def loop_settings(
    protocol: FewShotProtocol | InstructProtocol | DreamboothProtocol,
    *,
    epochs: int,
    warmup_steps: int,
    max_steps: int | None,
    micro_batch_size: int | None,
    **own: Any,
) -> LoopSettings:
    """The loop's settings of a protocol; ``own``: the fields of ``LoopSettings`` that only some protocols set."""
    return LoopSettings(
        lr=protocol.lr,
        batch_size=protocol.batch_size,
        epochs=epochs,
        schedule=protocol.schedule,
        warmup_steps=warmup_steps,
        betas=(protocol.betas[0], protocol.betas[1]),
        eps=protocol.eps,
        weight_decay=protocol.weight_decay,
        max_grad_norm=protocol.max_grad_norm,
        precision=protocol.precision,
        max_steps=max_steps,
        micro_batch_size=micro_batch_size,
        **own,
    )


def make_preconditioner(method: MethodSpec, model: nn.Module) -> Preconditioner | None:
    """The method's preconditioner over the LoRA layers of ``model``, None where it has none."""
    if method.preconditioner is None:
        return None
    return Preconditioner(lora_layers(model), damping=method.damping or 0.0, normalize=method.normalize or "none")


def epoch_order(seed: int, num_examples: int, epoch: int) -> Tensor:
    """The epoch's permutation of the examples, from a stream of its own."""
    return torch.randperm(num_examples, generator=streams.generator(seed, "order", f"epoch {epoch}"))


def diverged(error: Diverged, metrics: dict[str, Any], proof: dict[str, Any], run: dict[str, Any]) -> Outcome:
    """The outcome of a run that ended at a loss or gradient that is not finite."""
    return Outcome(
        metrics=metrics, proof=proof, files={}, diverged={"step": error.step, "tensor": error.tensor}, run=run
    )


def stop_if_asked(context: RunContext, state: LoopState) -> None:
    """For the time after the last step, whose state is saved: Interrupted where the run was asked to stop."""
    if context.stop_requested():
        raise Interrupted(state.step)


def report_step(context: RunContext, info: StepInfo) -> None:
    """One line of progress."""
    values = {"loss": info.loss, "grad_norm": info.grad_norm, "lr": info.lr}
    context.report(Update("train", info.step, info.total_steps, values))


def at_boundary(context: RunContext, total_steps: int, state: LoopState) -> None:
    """A checkpoint when due or when asked to stop; Interrupted in the latter case.

    The last step's too: whatever happens during the final evaluation, nothing is trained again. Those two are on disk
    when this returns; of the others only the copy is taken.
    """
    stop = context.stop_requested()
    if context.replicas is not None:  # one that stopped alone would leave the others waiting for its gradients
        stop = context.replicas.total(float(stop), context.device) > 0
    last = stop or state.step == total_steps
    if last or state.step % context.settings.checkpoint_every == 0:
        context.checkpoints.save(state)
    if last:
        context.checkpoints.join()
    if stop:
        raise Interrupted(state.step)


def resume(state: LoopState, context: RunContext) -> int | None:
    """Continues from the newest valid checkpoint of an earlier attempt; the step it was taken at."""
    path = context.checkpoints.newest()
    if context.replicas is not None:
        path = context.replicas.agree(path)
    if path is None:
        return None
    context.checkpoints.restore(path, state)
    return state.step


def seed_dropout(seed: int, step: int, replicas: Replicas | None = None) -> None:
    """Dropout masks of a step from the step's own stream (torch takes no generator here); a replica has its own."""
    replica = f", replica {replicas.rank} of {replicas.size}" if replicas is not None and replicas.size > 1 else ""
    torch.manual_seed(streams.stream_seed(seed, "dropout", f"step {step}{replica}"))


def pack_predictions(predictions: Sequence[dict[str, Any]]) -> bytes:
    """One JSON line per test example, compressed; the same predictions give the same bytes."""
    lines = [json.dumps(row, ensure_ascii=False) for row in predictions]
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)

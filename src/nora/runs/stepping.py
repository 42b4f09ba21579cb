"""What every training run does around its steps: settings, progress, checkpoints, resuming, dropout, predictions."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nora import streams
from nora.adapters import Preconditioner, lora_layers
from nora.runs.checkpoint import newest_valid, restore_checkpoint
from nora.runs.context import Outcome, RunContext, Update
from nora.runs.errors import Interrupted
from nora.runs.schema import DreamboothProtocol, FewShotProtocol, InstructProtocol, MethodSpec
from nora.training.loop import Diverged, LoopSettings, LoopState, StepInfo

if TYPE_CHECKING:
    from nora.training.replicas import Replicas

_LOG = logging.getLogger(__name__)


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
    path, damaged = newest_valid(attempt.path for attempt in context.earlier)
    for bad in damaged:
        _LOG.warning("%s: damaged checkpoint left out", bad)
    if context.replicas is not None:
        path = context.replicas.agree(path)
    if path is None:
        return None
    restore_checkpoint(path, state)
    return state.step


def seed_dropout(seed: int, step: int, replicas: Replicas | None = None) -> None:
    """Dropout masks of a step from the step's own stream (torch takes no generator here); a replica has its own."""
    replica = f", replica {replicas.rank} of {replicas.size}" if replicas is not None and replicas.size > 1 else ""
    torch.manual_seed(streams.stream_seed(seed, "dropout", f"step {step}{replica}"))


def pack_predictions(predictions: Sequence[dict[str, Any]]) -> bytes:
    """One JSON line per test example, compressed; the same predictions give the same bytes."""
    lines = [json.dumps(row, ensure_ascii=False) for row in predictions]
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)

"""What every kind of run is given and gives back, and what a training run does around its steps."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict

import torch
from safetensors.torch import save
from torch import Tensor, nn

from nora import starts, streams
from nora.adapters import Bank, InitReport, Preconditioner, lora_layers
from nora.config.schema import ExecSpec, MethodSpec, TrainingProtocol
from nora.errors import Interrupted
from nora.files import Json
from nora.kinds.parts.sizing import explain_out_of_memory
from nora.store.attempt import Attempt
from nora.training.bank import Member, train_bank
from nora.training.loop import (
    BankedObjective,
    Diverged,
    LoopSettings,
    LoopState,
    StepInfo,
    make_state,
    num_steps,
    train,
)

if TYPE_CHECKING:
    from peft import PeftModel

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

    def newest(self, state: LoopState) -> Path | None:
        """The newest checkpoint of an earlier attempt that is whole, this run's and fits a fresh state of it."""
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
    report: Callable[[Update], None]
    stop_requested: Callable[[], bool] = lambda: False
    """Asked at step boundaries: True means save the state and raise Interrupted."""
    keep_base: bool = False
    """More runs on the same base follow in this process."""
    share_base: bool = False
    """The run is to be a member of a bank: its base's weights are the others' too."""
    replicas: Replicas | None = None
    """This process's place among those that share the run's batches."""
    show_picture: Callable[[str, bytes, int], None] = lambda name, data, step: None
    """A JPEG made on the way, for the attempt's folder and the tracker."""


class OutputFile(NamedTuple):
    """A file of a run; its name on disk is ``stem`` with the content's hash."""

    stem: str
    suffix: str
    content: bytes
    keep: bool = True
    """Whether it is written: what exec keeps must not show in the result."""


@dataclass(frozen=True)
class Outcome:
    """What a run found out. ``files`` by their label in the record."""

    metrics: dict[str, Json]
    proof: Mapping[str, Json]
    files: dict[str, OutputFile] = field(default_factory=dict)
    beside: dict[str, bytes] = field(default_factory=dict)
    """Name below the run's folder → content, of what exec asks to keep and no result names."""
    diverged: dict[str, Json] | None = None
    run: dict[str, Json] = field(default_factory=dict)


def loop_settings(
    protocol: TrainingProtocol,
    *,
    precision: str,
    epochs: int,
    warmup_steps: int,
    max_steps: int | None,
    micro_batch_size: int | None,
    evaluate_every: int | None = None,
    keep_best: bool = True,
    precondition_each: bool = False,
) -> LoopSettings:
    """The loop's settings of a protocol."""
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
        precision=precision,
        max_steps=max_steps,
        micro_batch_size=micro_batch_size,
        evaluate_every=evaluate_every,
        keep_best=keep_best,
        precondition_each=precondition_each,
    )


def make_preconditioner(method: MethodSpec, model: nn.Module) -> Preconditioner | None:
    """The method's preconditioner over the LoRA layers of ``model``, None if it has none."""
    if method.preconditioner is None:
        return None
    return Preconditioner(lora_layers(model), damping=method.damping or 0.0, normalize=method.normalize or "none")


def optimizer_of(method: MethodSpec) -> Callable[..., torch.optim.Optimizer] | None:
    """What makes the method's optimiser where that is not the loop's AdamW, its own settings filled in."""
    variant = None if method.variant is None else starts.load("variants", method.variant)
    name = method.optimizer or getattr(variant, "OPTIMIZER", None)
    if name is None:
        return None
    module = starts.load("optimizers", name)
    return partial(module.make, **{key: getattr(method, key) for key in module.OPTIONS})


def epoch_order(seed: int, num_examples: int, epoch: int) -> Tensor:
    """The epoch's permutation of the examples, from a stream of its own."""
    return torch.randperm(num_examples, generator=streams.generator(seed, "order", f"epoch {epoch}"))


def seed_dropout(seed: int, step: int, replicas: Replicas | None = None) -> None:
    """Dropout masks of a step from the step's own stream (torch takes no generator here); a replica has its own."""
    replica = f", replica {replicas.rank} of {replicas.size}" if replicas is not None and replicas.size > 1 else ""
    torch.manual_seed(streams.stream_seed(seed, "dropout", f"step {step}{replica}"))


@contextmanager
def float32_products(precision: str | None) -> Iterator[None]:
    """torch's setting for float32 products ("high": TF32 where the GPU has it), put back at the end; None: as it is."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision or before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Hooks(TypedDict):
    """What the loop is handed of a training run, beside what its kind knows."""

    settings: LoopSettings
    state: LoopState
    order: Callable[[int], Tensor]
    on_step: Callable[[StepInfo], None]
    on_boundary: Callable[[LoopState], None]
    replicas: Replicas | None


class LoopArguments(Hooks):
    """The same with what the kind knows."""

    before_step: Callable[[int], None]
    evaluate: Callable[[nn.Module], dict[str, Json]]


class TrainingRun:
    """One run's state on its way through the loop: resumed, checkpointed, reported, timed, ended."""

    def __init__(
        self,
        context: RunContext,
        model: nn.Module,
        method: MethodSpec,
        settings: LoopSettings,
        proof: InitReport,
        *,
        seed: int,
        num_examples: int,
    ) -> None:
        self._context, self._seed, self._num_examples = context, seed, num_examples
        self._started = time.monotonic()
        self._proof = proof
        every = 1 if context.replicas else math.gcd(context.settings.read_every or 1, context.settings.checkpoint_every)
        self.settings = settings = replace(settings, read_every=every, compile=context.settings.compile)
        preconditioner = make_preconditioner(method, model)
        self.state = make_state(
            model, settings, num_examples=num_examples, preconditioner=preconditioner, make=optimizer_of(method)
        )
        self.timing: dict[str, Json] = {}

    @property
    def num_trained(self) -> int:
        """Trained parameters."""
        return sum(p.numel() for p in self.state.parameters.values())

    def resume(self, since: float) -> None:
        """Continues from the newest valid checkpoint of an earlier attempt; setup was begun at ``since``."""
        context = self._context
        path = context.checkpoints.newest(self.state)
        if context.replicas is not None:
            path = context.replicas.agree(path)
        if path is not None:
            context.checkpoints.restore(path, self.state)
        self.timing |= {
            "setup_seconds": time.monotonic() - since,
            "resumed_at_step": None if path is None else self.state.step,
        }
        self._started = time.monotonic()

    def hooks(self, total_steps: int, before_boundary: Callable[[LoopState], None] = lambda state: None) -> Hooks:
        """The loop's hooks; ``before_boundary`` is called after every step, before its checkpoint."""

        def on_boundary(state: LoopState) -> None:
            before_boundary(state)
            self._at_boundary(total_steps)

        return {
            "settings": self.settings,
            "state": self.state,
            "order": partial(epoch_order, self._seed, self._num_examples),
            "on_step": self._report,
            "on_boundary": on_boundary,
            "replicas": self._context.replicas,
        }

    def _report(self, info: StepInfo) -> None:
        values = {"loss": info.loss, "grad_norm": info.grad_norm, "lr": info.lr}
        self._context.report(Update("train", info.step, info.total_steps, values))

    def _at_boundary(self, total_steps: int) -> None:
        """A checkpoint when due or when asked to stop; Interrupted in the latter case.

        The last step's too: whatever happens during the final evaluation, nothing is trained again. Those two are on
        disk when this returns; of the others only the copy is taken.
        """
        context, state = self._context, self.state
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

    def stop_if_asked(self) -> None:
        """For the time before the first step and after the last, whose state is saved: Interrupted if asked."""
        if self._context.stop_requested():
            raise Interrupted(self.state.step, saved=self.state.step > 0)

    def between(self, phase: str) -> Callable[[int, int], None]:
        """What an evaluation calls between its batches, with how many of all are done: Interrupted if asked to stop."""

        def look(done: int, total: int) -> None:
            self.stop_if_asked()
            if done:
                self._context.report(Update(phase, done, total, {}))

        return look

    def diverged(self, error: Diverged, metrics: dict[str, Json]) -> Outcome:
        """The outcome of a run that ended at a loss or gradient that is not finite."""
        ended = {"step": error.step, "tensor": error.tensor}
        return Outcome(metrics=metrics, proof=self._proof.to_dict(), diverged=ended, run=self.timing)

    def trained(self, phase: str, *, since: float | None = None, members: int = 1) -> None:
        """Names the phase that follows the last step; of a bank's time each member has its share."""
        self.timing["train_seconds"] = (time.monotonic() - (since or self._started)) / members
        self._context.report(Update(phase, 0, 1, {}))

    def adapter_bytes(self) -> bytes:
        """The trained parameters as they are now."""
        return save({name: p.detach().contiguous().cpu() for name, p in self.state.parameters.items()})

    def outcome(
        self, metrics: dict[str, Json], files: dict[str, OutputFile], since: float, beside: Mapping[str, bytes] = {}
    ) -> Outcome:
        """What the run found out."""
        self.timing["seconds"] = time.monotonic() - since
        return Outcome(metrics, self._proof.to_dict(), files, run=self.timing, beside=dict(beside))

    def text_files(self, predictions: Sequence[Mapping[str, Json]], adapter: bytes) -> dict[str, OutputFile]:
        """The two files of a run on text: one JSON line per test example, the same predictions give the same bytes."""
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in predictions) + "\n"
        return {
            "predictions": OutputFile("predictions", ".jsonl.gz", gzip.compress(lines.encode(), mtime=0)),
            "adapter": OutputFile("adapter", ".safetensors", adapter, self._context.settings.keep_adapter),
        }


@dataclass
class Prepared:
    """A training run up to its first step: what the loop is given of it, and what it comes to."""

    run: TrainingRun
    model: PeftModel
    objective: BankedObjective
    seed_step: Callable[[int], None]
    evaluate: Callable[[nn.Module, int], list[dict[str, Json]]]
    """Dev metrics of a model, or of so many members of a bank."""
    memory: str
    """What would fit, if training does not."""
    ended: Callable[[Diverged], Outcome]
    finish: Callable[..., Outcome]
    """Tests what was trained, unless it is given what ``test`` found."""
    test: Callable[[nn.Module, int], Sequence[Any]] | None
    """The test of so many members of a bank in one pass; None: each is tested by itself."""
    base: nn.Module | None
    subtracted: Mapping[str, tuple[Tensor, Tensor]] | None
    """Of a member of a bank: the base they share, and what its start took out of it."""

    def loop(self) -> LoopArguments:
        """What ``loop.train`` is given beside the model and the objective."""
        total = num_steps(self.objective.num_examples, self.run.settings)
        hooks = self.run.hooks(total)
        return {**hooks, "before_step": self.seed_step, "evaluate": lambda model: self.evaluate(model, 1)[0]}


def train_alone(ready: Prepared) -> Outcome:
    """Trains and tests one run."""
    try:
        with explain_out_of_memory("training", ready.memory):
            train(ready.model, ready.objective, **ready.loop())
    except Diverged as error:
        return ready.ended(error)
    ready.run.trained("test")
    return ready.finish()


def train_together(members: Sequence[Prepared]) -> list[Diverged | Callable[[], Outcome]]:
    """Trains runs over one base in one step each and tests them in one pass where that can be; returns of each how it
    diverged, or what tests it (or takes its test over) and gives its outcome.

    They are at the same step and have the same rows, order and dropout. Raises NotBankable before anything is trained.
    """
    assert members[0].base is not None
    bank = Bank(members[0].base, [m.model for m in members], [m.subtracted for m in members])
    since = time.monotonic()
    sides = []
    for ready in members:
        loop = ready.loop()
        sides.append(Member(ready.model, loop["state"], loop["on_step"], loop["on_boundary"]))
    first = members[0]
    order, settings = first.loop()["order"], first.run.settings
    train_bank(
        bank, first.objective, settings, sides, order=order, before_step=first.seed_step, evaluate=first.evaluate
    )
    for ready in members:
        ready.run.trained("test", since=since, members=len(members))
    if first.test is None:
        return [side.diverged or ready.finish for side, ready in zip(sides, members, strict=True)]
    tested = first.test(bank, len(members))
    return [
        side.diverged or partial(ready.finish, own) for side, ready, own in zip(sides, members, tested, strict=True)
    ]

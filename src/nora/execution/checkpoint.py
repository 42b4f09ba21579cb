"""Checkpoints between optimiser steps: one safetensors file each, named by step and content, two generations kept.

The state is copied in the step; serialising, hashing and writing the copy is a background thread's work.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from nora.files import sha256_bytes, sha256_file, write_atomic

if TYPE_CHECKING:
    from nora.training.loop import LoopState


_LOG = logging.getLogger(__name__)
GENERATIONS = 2


def _copy_tensors(state: LoopState) -> dict[str, torch.Tensor]:
    tensors = {f"parameter/{name}": p.detach() for name, p in state.parameters.items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    for name, parameter in state.parameters.items():
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"adam/{key}/{name}": value for key, value in moments.items()}
    for layer, moments in state.optimizer.state.items():
        if isinstance(layer, str):  # PEFT's LoRA-FA keeps them by the layer's name
            tensors |= {f"named/{key}/{layer}": torch.as_tensor(value) for key, value in moments.items()}
    return {key: value.to("cpu", copy=True).contiguous() for key, value in tensors.items()}


def _scalars(state: LoopState) -> str:
    values = {
        "step": state.step,
        "epoch_loss": state.epoch_loss,
        "steps_since": state.steps_since,
        "losses": state.losses,
        "dev_log": state.dev_log,
        "scheduler_epoch": state.scheduler.last_epoch,
        "lrs": [group["lr"] for group in state.optimizer.param_groups],
        "preconditioner_steps": state.preconditioner.steps if state.preconditioner else None,
        "scaler": state.scaler.state_dict() if state.scaler else None,
        "skipped": state.skipped,
    }
    return json.dumps(values)


def _write(folder: Path, step: int, tensors: dict[str, torch.Tensor], scalars: str) -> None:
    data = save(tensors, metadata={"state": scalars})
    write_atomic(folder / f"step-{step:08d}.{sha256_bytes(data)}.safetensors", data)
    for old in sorted(folder.glob("step-*.safetensors"))[:-GENERATIONS]:
        old.unlink(missing_ok=True)


class CheckpointWriter:
    """Writes one checkpoint at a time into ``folder`` beside the training; what fails there is raised by the next call.

    ``earlier``: the folders of attempts before this one, whose checkpoints may be continued. As a context it ends with
    nothing in flight.
    """

    def __init__(self, folder: Path, earlier: Iterable[Path] = ()) -> None:
        self._folder = folder
        self._earlier = tuple(earlier)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._in_flight: Future[None] | None = None

    def save(self, state: LoopState) -> None:
        """Takes a copy of the whole loop state, to be written once the write before it is done."""
        self.join()
        tensors, scalars = _copy_tensors(state), _scalars(state)
        self._in_flight = self._thread.submit(_write, self._folder, state.step, tensors, scalars)

    def join(self) -> None:
        """Waits until what was saved is on disk; OSError where it could not be written."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def newest(self) -> Path | None:
        """The newest valid checkpoint of an earlier attempt; damaged ones are named in a warning."""
        path, damaged = newest_valid(self._earlier)
        for bad in damaged:
            _LOG.warning("%s: damaged checkpoint left out", bad)
        return path

    def restore(self, path: Path, state: LoopState) -> None:
        """Puts a checkpoint into a fresh state of the same model and settings."""
        restore_checkpoint(path, state)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.join()
        except Exception as failure:
            if error is None:
                raise
            _LOG.warning("%s: the last checkpoint could not be written: %s", self._folder, failure)
        finally:
            self._thread.shutdown()


def newest_valid(folders: Iterable[Path]) -> tuple[Path | None, list[Path]]:
    """The checkpoint of the most steps whose content is what its name says, and the damaged ones met on the way."""
    damaged: list[Path] = []
    paths = [path for folder in folders for path in folder.glob("step-*.safetensors")]
    for path in sorted(paths, key=lambda p: p.name, reverse=True):
        if sha256_file(path) == path.name.split(".")[1]:
            return path, damaged
        damaged.append(path)
    return None, damaged


@torch.no_grad()
def restore_checkpoint(path: Path, state: LoopState) -> None:
    """Puts a checkpoint into a fresh state of the same model and settings."""
    with safe_open(path, framework="pt") as file:
        scalars: dict[str, Any] = json.loads(file.metadata()["state"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    for name, parameter in state.parameters.items():
        parameter.copy_(tensors[f"parameter/{name}"])
        moments = {
            key.split("/", 2)[1]: value
            for key, value in tensors.items()
            if key.startswith("adam/") and key.split("/", 2)[2] == name
        }
        if moments:
            # AdamW keeps its step count on the CPU and its moments beside the parameter.
            state.optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }
        if f"best/{name}" in tensors:
            state.best[name] = tensors[f"best/{name}"].to(parameter.device)
    device = next(iter(state.parameters.values())).device
    for key, value in tensors.items():
        if key.startswith("named/"):
            _, moment, name = key.split("/", 2)
            kept: Any = state.optimizer.state
            kept[name][moment] = int(value) if moment == "step" else value.to(device)
    state.step = scalars["step"]
    state.epoch_loss = scalars["epoch_loss"]
    state.steps_since = scalars["steps_since"]
    state.losses = scalars.get("losses", [])  # a checkpoint of before they were kept
    state.dev_log = scalars["dev_log"]
    state.scheduler.last_epoch = scalars["scheduler_epoch"]
    state.scheduler._last_lr = list(scalars["lrs"])
    for group, lr in zip(state.optimizer.param_groups, scalars["lrs"], strict=True):
        group["lr"] = lr
    if state.preconditioner is not None:
        state.preconditioner.steps = scalars["preconditioner_steps"]
    if state.scaler is not None:
        state.scaler.load_state_dict(scalars["scaler"])
        state.skipped = scalars["skipped"]

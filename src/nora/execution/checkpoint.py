"""Checkpoints between optimiser steps: one safetensors file each, named by step and content, two generations kept.

Inside what the hash covers it says whose state it is: schema, run, attempt, step.

The state is copied in the step; serialising, hashing and writing the copy is a background thread's work.
"""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nora.files import sha256_bytes, sha256_file, write_atomic

if TYPE_CHECKING:
    from nora.training.loop import LoopState


_LOG = logging.getLogger(__name__)
GENERATIONS = 2
SCHEMA = "1"
_SCALARS = ("step", "epoch_loss", "steps_since", "dev_log", "scheduler_epoch", "lrs")


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


def _write(folder: Path, step: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    data = save(tensors, metadata=metadata)
    write_atomic(folder / f"step-{step:08d}.{sha256_bytes(data)}.safetensors", data)
    for old in sorted(folder.glob("step-*.safetensors"))[:-GENERATIONS]:
        with suppress(OSError):
            old.unlink(missing_ok=True)


class CheckpointWriter:
    """Writes one checkpoint at a time into ``folder`` beside the training; what fails there is raised by the next call.

    ``earlier``: the folders of attempts before this one, whose checkpoints may be continued if they are of the run with
    the id ``run``. As a context it ends with nothing in flight, unless KeyboardInterrupt (the second order to stop)
    ends it.
    """

    def __init__(self, folder: Path, earlier: Iterable[Path] = (), *, run: str = "") -> None:
        self._folder = folder
        self._earlier = tuple(earlier)
        self._run = run
        self._in_flight: Future[None] | None = None

    def save(self, state: LoopState) -> None:
        """Takes a copy of the whole loop state, to be written once the write before it is done."""
        self.join()
        tensors = _copy_tensors(state)
        metadata = {"state": _scalars(state), **_stamp(self._run, self._folder, state.step)}
        written: Future[None] = Future()

        def write(step: int) -> None:
            try:
                _write(self._folder, step, tensors, metadata)
                written.set_result(None)
            except BaseException as error:
                written.set_exception(error)

        # A daemon: told a second time to stop, the process waits for no disk that hangs.
        Thread(target=write, args=(state.step,), name="checkpoint", daemon=True).start()
        self._in_flight = written

    def join(self) -> None:
        """Waits until what was saved is on disk; OSError where it could not be written."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def newest(self, state: LoopState) -> Path | None:
        """The newest checkpoint of an earlier attempt that is this run's and fits a fresh ``state`` of it; the others
        are named in a warning."""
        path, unusable = newest_valid(self._earlier, state, run=self._run)
        for why in unusable:
            _LOG.warning("%s: checkpoint left out", why)
        if unusable:
            _LOG.warning("the run goes on from %s", "its start" if path is None else path)
        return path

    def restore(self, path: Path, state: LoopState) -> None:
        """Puts a checkpoint into a fresh state of the same model and settings."""
        restore_checkpoint(path, state, run=self._run)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):  # told twice: at once
            return
        try:
            self.join()
        except Exception as failure:
            if error is None:
                raise
            _LOG.warning("%s: the last checkpoint could not be written: %s", self._folder, failure)


def _stamp(run: str, folder: Path, step: int) -> dict[str, str]:
    """Whose state a checkpoint holds: under its hash, since a foreign one has a name that is right for its content."""
    return {"schema": SCHEMA, "run": run, "attempt": folder.name, "step": str(step)}


def newest_valid(folders: Iterable[Path], state: LoopState, *, run: str = "") -> tuple[Path | None, list[str]]:
    """The checkpoint of the most steps that is whole, of this run and fits ``state``, and of those met on the way one
    line each on why they do not count.

    One without a stamp (before there was one) counts by its name and shapes alone.
    """
    unusable: list[str] = []
    paths = [path for folder in folders for path in folder.glob("step-*.safetensors")]
    for path in sorted(paths, key=lambda p: p.name, reverse=True):
        try:
            _check_fits(*_read(path, run), state)
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
            unusable.append(f"{path}: {error if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'}")
            continue
        return path, unusable
    return None, unusable


def _read(path: Path, run: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Scalars and tensors of a checkpoint; ValueError saying why it is not one of this run and attempt."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError("not a regular file")
    _, step, digest, _ = path.name.replace("-", ".").split(".")
    if sha256_file(path) != digest:
        raise ValueError("damaged (not what its name says)")
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
        scalars: dict[str, Any] = json.loads(metadata["state"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    if scalars["step"] != int(step):
        raise ValueError(f"holds step {scalars['step']}")
    expected = _stamp(run, path.parent, scalars["step"])
    given = {key: metadata[key] for key in expected if key in metadata}
    if given and given != expected:
        wrong = ", ".join(f"{key} {given.get(key)!r}" for key in expected if given.get(key) != expected[key])
        raise ValueError(f"foreign (holds {wrong})")
    return scalars, tensors


def _check_fits(scalars: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], state: LoopState) -> None:
    """ValueError or LookupError before anything of ``state`` is touched."""
    lacking = [f"parameter/{name}" for name in state.parameters if f"parameter/{name}" not in tensors]
    lacking += [key for key in _SCALARS if key not in scalars]
    lacking += ["preconditioner_steps"] if state.preconditioner and "preconditioner_steps" not in scalars else []
    lacking += ["scaler"] if state.scaler and not {"scaler", "skipped"} <= set(scalars) else []
    if lacking:
        raise ValueError(f"lacks {', '.join(lacking[:3])}")
    for key, value in tensors.items():
        part, name = key.split("/", 1)
        if part == "named":  # by a layer's name, as PEFT's LoRA-FA keeps them
            continue
        if part == "adam":
            name = name.split("/", 1)[1]
        shape = state.parameters[name].shape
        if value.shape != shape and (part != "adam" or value.numel() != 1):
            raise ValueError(f"{key}: given shape {list(value.shape)}, required {list(shape)}")
    counts = [scalars[key] for key in ("step", "steps_since", "scheduler_epoch")]
    if not all(isinstance(count, int) for count in counts) or len(scalars["lrs"]) != len(state.optimizer.param_groups):
        raise ValueError("its counts or learning rates are not those of a run")


@torch.no_grad()
def restore_checkpoint(path: Path, state: LoopState, *, run: str = "") -> None:
    """Puts a checkpoint into a fresh state of the same model and settings."""
    scalars, tensors = _read(path, run)
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

"""Checkpoints between optimiser steps: one safetensors file each, named by step and content, two generations kept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from nora.runs.files import sha256_bytes, sha256_file, write_atomic
from nora.training.loop import LoopState

GENERATIONS = 2


def _tensors(state: LoopState) -> dict[str, torch.Tensor]:
    tensors = {f"parameter/{name}": p.detach() for name, p in state.parameters.items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    for name, parameter in state.parameters.items():
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"adam/{key}/{name}": value for key, value in moments.items()}
    return {key: value.contiguous().cpu() for key, value in tensors.items()}


def save_checkpoint(folder: Path, state: LoopState) -> Path:
    """Writes the whole loop state and drops all but the last two generations of ``folder``."""
    scalars = {
        "step": state.step,
        "epoch_loss": state.epoch_loss,
        "steps_since": state.steps_since,
        "losses": state.losses,
        "dev_log": state.dev_log,
        "scheduler_epoch": state.scheduler.last_epoch,
        "lrs": [group["lr"] for group in state.optimizer.param_groups],
        "preconditioner_steps": state.preconditioner.steps if state.preconditioner else None,
    }
    data = save(_tensors(state), metadata={"state": json.dumps(scalars)})
    path = folder / f"step-{state.step:08d}.{sha256_bytes(data)}.safetensors"
    write_atomic(path, data)
    for old in sorted(folder.glob("step-*.safetensors"))[:-GENERATIONS]:
        old.unlink(missing_ok=True)
    return path


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

"""What a kind of run is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nora.runs.attempt import Attempt
from nora.runs.checkpoint import CheckpointWriter
from nora.runs.schema import ExecSpec

if TYPE_CHECKING:
    from nora.training.replicas import Replicas


@dataclass(frozen=True)
class Update:
    """One line of progress."""

    phase: str
    step: int
    total: int
    values: dict[str, float]


@dataclass(frozen=True)
class RunContext:
    """Where a run executes; nothing in here may change a number."""

    checkout: Path
    settings: ExecSpec
    device: torch.device
    attempt: Attempt
    earlier: tuple[Attempt, ...]
    """Attempts before this one: their checkpoints may be continued."""
    checkpoints: CheckpointWriter
    """Of this attempt."""
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

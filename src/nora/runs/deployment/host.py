"""What a host of adapters can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trained:
    """An adapter after training: its live model, its factors at the start, what the model puts out."""

    model: Any
    start: dict[str, Tensor]
    output: Tensor
    losses: list[float]
    start_difference: float


def difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference."""
    return float((one.float() - other.float()).abs().max())


class Host(Protocol):
    """A base that adapters are trained on, saved from and loaded onto; ``base()`` is a new, untouched one each time."""

    targets: list[str]

    def base(self) -> Any: ...

    def adapted(self, config: Any) -> Any: ...

    def loss(self, model: Any, step: int) -> Tensor: ...

    def output(self, model: Any) -> Tensor: ...

    def save_stock(self, model: Any, folder: Path) -> None: ...

    def save_ours(self, model: Any, folder: Path, start: dict[str, Tensor] | None) -> None: ...

    def load(self, adapters: dict[str, Path], *, active: str) -> Any: ...

    def switch(self, model: Any, active: str | None) -> Any:
        """Makes one adapter active, or none."""
        ...

    def merge_residue(self, saved: Path, dtype: torch.dtype) -> dict[str, float]:
        """After one merge and unmerge: largest change of a base weight, and output of merged against unmerged."""
        ...

    def extra(self, trained: Trained, folder: Path) -> dict[str, Any]: ...

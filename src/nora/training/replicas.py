"""Data parallelism through accelerate: each process takes its share of every batch, gradients are summed.

The loss of a batch is a sum divided by the count of the whole batch, so the sum over the processes is the loss and the
gradient that one process would have: the effective batch does not change with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn


@dataclass(frozen=True)
class Replicas:
    """One process of several that train the same run."""

    rank: int
    size: int

    def share(self, indices: Sequence[int]) -> Sequence[int]:
        """Every size-th example, from the rank on; the shares differ by at most one example."""
        return indices[self.rank :: self.size]

    def total(self, value: float, device: torch.device) -> float:
        """The sum of a number over the processes, float64."""
        summed: Tensor = reduce(torch.tensor(value, dtype=torch.float64, device=device), "sum")
        return float(summed)

    def agree(self, value: Any) -> Any:
        """The first process's value, on all of them."""
        return broadcast_object_list([value])[0]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over the processes; a process without examples adds zeros."""
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(gradient, "sum")


def join_replicas(*, cpu: bool) -> Replicas:
    """This process's place among those that ``accelerate launch`` (or torchrun) has started, by gloo with ``cpu``.

    accelerate does not see for itself that a machine without accelerators was meant: it would find one process.
    """
    state = PartialState(cpu=cpu)
    return Replicas(state.process_index, state.num_processes)

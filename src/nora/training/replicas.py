"""Data parallelism through accelerate: each process takes its share of every batch, gradients are summed.

The loss of a batch is a sum divided by the count of the whole batch, so the sum over the processes is the loss and the
gradient that one process would have: the effective batch does not change with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn

from nora.errors import ProcessLost


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
        with self._together():
            summed: Tensor = reduce(torch.tensor(value, dtype=torch.float64, device=device), "sum")
            return float(summed)

    def agree(self, value: Any) -> Any:
        """The first process's value, on all of them."""
        with self._together():
            return broadcast_object_list([value])[0]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over the processes; a process without examples adds zeros."""
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            with self._together():
                parameter.grad = reduce(gradient, "sum")

    @contextmanager
    def _together(self) -> Iterator[None]:
        """ProcessLost where another one was killed, or its machine is gone: none can go on without it."""
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's
            reason = str(error).splitlines()[0]
            raise ProcessLost(
                f"one of the {self.size} processes of the run has ended, and the others with it; the same command goes "
                f"on from the last checkpoint ({reason})"
            ) from error


def join_replicas(*, cpu: bool) -> Replicas:
    """This process's place among those that ``accelerate launch`` (or torchrun) has started, by gloo with ``cpu``.

    accelerate does not see for itself that a machine without accelerators was meant: it would find one process.
    """
    state = PartialState(cpu=cpu)
    return Replicas(state.process_index, state.num_processes)

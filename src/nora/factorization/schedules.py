"""Step sizes: a number, or a staircase of numbers (Section 2.4 suggests eta = 0.1, 0.01, ... every few iterations)."""

from __future__ import annotations

from dataclasses import dataclass

from nora.factorization.linalg import require_positive


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """``values[0]`` for ``length`` iterations, then ``values[1]``, ...; the last value stays."""

    values: tuple[float, ...]
    length: int

    def __post_init__(self) -> None:
        if not self.values or self.length < 1:
            raise ValueError(
                f"Staircase: given {len(self.values)} values and length {self.length}, required at least 1 of each"
            )
        for value in self.values:
            require_positive(value, "eta")

    def __call__(self, t: int) -> float:
        return self.values[min(t // self.length, len(self.values) - 1)]


Step = float | Staircase


def require_step(eta: Step) -> None:
    """A constant must be finite and > 0; a staircase checked itself."""
    if not isinstance(eta, Staircase):
        require_positive(eta, "eta")


def step_at(eta: Step, t: int) -> float:
    """eta_t."""
    return eta(t) if isinstance(eta, Staircase) else eta

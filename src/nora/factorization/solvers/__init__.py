"""Solvers: one file, one frozen dataclass ``Solver`` with ``step``. It never draws and never decides when to stop."""

from __future__ import annotations

import sys
from typing import Protocol, cast

from nora.factorization.linalg import State, modules
from nora.factorization.linalg import load as _load
from nora.factorization.problems.base import Problem


class Solver(Protocol):
    """What the loop needs."""

    def step(self, problem: Problem, state: State, t: int) -> State:
        """The iterate t + 1 from the iterate t."""


def names() -> list[str]:
    """The files of this folder."""
    return modules(sys.modules[__name__])


def load(name: str) -> type[Solver]:
    """solvers.load("scaled_gd") is solvers/scaled_gd.py's ``Solver``."""
    return cast(type[Solver], _load(sys.modules[__name__], name, "solver").Solver)

"""Starts: where the iteration begins. One file, one ``start(problem, *, generator, **settings) -> State``.

A start draws every random number from the generator it is given, and nothing else in the floor draws any.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import cast

from nora.factorization.linalg import State, modules
from nora.factorization.linalg import load as _load


def names() -> list[str]:
    """The files of this folder."""
    return modules(sys.modules[__name__])


def load(name: str) -> Callable[..., State]:
    """starts.load("nystrom") is starts/nystrom.py's ``start``."""
    return cast(Callable[..., State], _load(sys.modules[__name__], name, "start").start)

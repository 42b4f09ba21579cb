"""One file per task: source, prompt, candidates, scoring. The folders are the registry, one per suite."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names(suite: str) -> list[str]:
    """The tasks of one suite: the file names of its folder."""
    package = importlib.import_module(f"{__name__}.{suite}")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__))


def load(suite: str, name: str) -> ModuleType:
    """The module of one task; ValueError for a name that is not a file of the suite's folder."""
    if name not in names(suite):
        raise ValueError(f"task: given {name!r}, required one of {', '.join(names(suite))}")
    return importlib.import_module(f"{__name__}.{suite}.{name}")

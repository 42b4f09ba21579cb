"""One file per task: source, prompt, candidates, scoring. The folders are the registry, one per suite."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any


@cache
def names(suite: str) -> list[str]:
    """The tasks of one suite: the file names of its folder."""
    package = importlib.import_module(f"{__name__}.{suite}")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__))


def suites() -> list[str]:
    """The suites there are: the folders."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.ispkg)


@cache
def labels() -> dict[str, str]:
    """Task, or set of a task → how it is spelt in print."""
    modules = [(name, load(suite, name)) for suite in suites() for name in names(suite)]
    found = {name: str(module.LABEL) for name, module in modules}
    for _, module in modules:
        sets = getattr(module, "SETS", ())
        found |= {name: one.label for name, one in sets.items()} if isinstance(sets, dict) else {}
    return found


def load(suite: str, name: str) -> ModuleType:
    """The module of one task; ValueError for a name that is not a file of the suite's folder."""
    if name not in names(suite):
        raise ValueError(f"task: given {name!r}, required one of {', '.join(names(suite))}")
    return importlib.import_module(f"{__name__}.{suite}.{name}")


def of(task: Any) -> Any:
    """The task of a spec (or of its plain data): a module, or what stands for one where the rows are one's own."""
    said = task if isinstance(task, Mapping) else vars(task)
    if said.get("source") != "file":
        return load(said["suite"], said["name"])
    from nora.tasks.own import task_of

    return task_of(said)

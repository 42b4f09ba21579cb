"""One file per kind of run: ``execute(spec, context) -> Outcome``. The folder is the registry."""

from __future__ import annotations

import importlib
from types import ModuleType


def load(kind: str) -> ModuleType:
    """The module that executes a kind (already validated by the schema)."""
    return importlib.import_module(f"{__name__}.{kind}")

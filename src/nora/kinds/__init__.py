"""The kinds of run: one module each. The folder is the registry."""

from __future__ import annotations

import importlib
from types import ModuleType

_MODULES = {"finetune": "few_shot"}


def load(kind: str) -> ModuleType:
    """The module that executes a kind (already validated by the schema)."""
    return importlib.import_module(f"{__name__}.{_MODULES.get(kind, kind)}")

"""Which starts, variants and optimisers there are, and what each file says of itself, without importing it (or torch).

A choice is a file: of ``nora/adapters/inits``, ``variants`` or ``optimizers``; for inits also an entry point of the
group ``nora.inits`` and the files of ``inits/`` in a folder given by ``--config-dir``. What a plan must know of it are
literals of its module (``OPTIONS = {…}``, ``MOVES_BASE = False``), read from its text.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_ADAPTERS = Path(__file__).parent / "adapters"
FOLDER = "NORA_CONFIG_DIR"
"""The environment variable that hands ``--config-dir`` on to the processes that a launch starts: a folder of choices as
``conf/`` has them (``method/mine.yaml``), and of ``inits/``."""


_LENT: dict[str, ModuleType] = {}


@contextmanager
def lent(name: str, module: ModuleType) -> Iterator[None]:
    """An init under a name for a block, wherever its module comes from (``nora.testing``)."""
    _LENT[name] = module
    try:
        yield
    finally:
        del _LENT[name]


@cache
def _package(axis: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted((_ADAPTERS / axis).glob("*.py")) if not path.stem.startswith("_")}


@cache
def _entry_points() -> dict[str, tuple[str, Path]]:
    """Name → module and its file, of the inits of other packages."""
    from importlib.metadata import entry_points  # a third of what `nora --help` would take

    found = {}
    for point in entry_points(group="nora.inits"):
        spec = importlib.util.find_spec(point.value)
        if spec is not None and spec.origin is not None:
            found[point.name] = point.value, Path(spec.origin)
    return found


def files(axis: str) -> dict[str, Path]:
    """Name → file of an axis ("inits", "variants", "optimizers"); no foreign file hides one of the package."""
    found: dict[str, Path] = {}
    if axis == "inits":
        found |= {name: path for name, (_, path) in _entry_points().items()}
        if folder := os.environ.get(FOLDER):
            found |= {path.stem: path for path in sorted(Path(folder, "inits").glob("*.py")) if path.stem[0] != "_"}
        found |= {name: Path(str(module.__file__)) for name, module in _LENT.items()}
    return {**found, **_package(axis)}


def names(axis: str) -> list[str]:
    """The choices there are."""
    return sorted(files(axis))


@cache
def _literals(path: Path, changed: int) -> Mapping[str, Any]:
    del changed  # part of the key
    found: dict[str, Any] = {"OPTIONS": {}}
    if _ADAPTERS not in path.parents:
        found["SOURCE"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                try:
                    found[ast.unparse(target)] = ast.literal_eval(node.value)
                except ValueError:
                    continue
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = True
    return found


def said(axis: str, name: str | None) -> Mapping[str, Any]:
    """The literals of a choice's module, True under the name of each of its functions, and for one that is not this
    package's the SHA-256 of its file as ``SOURCE``: what its runs depend on. No ``OPTIONS`` where it is not here."""
    path = files(axis).get(name or "")
    return {"OPTIONS": {}} if path is None else _literals(path, path.stat().st_mtime_ns)


def missing(axis: str, name: str) -> str:
    """The package that a choice takes and that is not installed here; "" where nothing is missing."""
    needed = str(said(axis, name).get("REQUIRES", ""))
    return needed if needed and importlib.util.find_spec(needed) is None else ""


def load(axis: str, name: str) -> ModuleType:
    """The module of a choice; ValueError for a name that is not there."""
    if axis == "inits" and name in _LENT:
        return _LENT[name]
    if name in _package(axis):
        return importlib.import_module(f"nora.adapters.{axis}.{name}")
    path = files(axis).get(name)
    if path is None:
        raise ValueError(f"{axis[:-1]}: given {name!r}, required one of {', '.join(names(axis))}")
    module, origin = _entry_points().get(name, ("", None))
    return importlib.import_module(module) if path == origin else _from_file(path)


def _from_file(path: Path) -> ModuleType:
    key = f"nora_start_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None and spec.loader is not None  # a .py file has both
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[key] = module
    return sys.modules[key]

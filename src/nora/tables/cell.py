"""A cell: one run that an artefact needs. And what every kind of table file shares."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import yaml

from nora.config import limits
from nora.config.compose import choices, folders
from nora.errors import one_of
from nora.files import Json
from nora.kinds import AnySpec
from nora.store.record import Record

Settings = dict[str, Json]
"""Hyper-parameter keys as typed on the command line → values."""
Picked = TypeVar("Picked")
S = TypeVar("S", bound=AnySpec, covariant=True)


@dataclass(frozen=True)
class Cell(Generic[S]):
    """One run of a target. A cell that waits for another's choice has no spec yet."""

    table: str
    scale: str
    row: str
    """A method, a curve, a start."""
    column: str
    """A task, a panel."""
    seed: int
    stage: int
    settings: Settings
    overrides: tuple[str, ...]
    """What `nora run` is given to make exactly this run."""
    spec: S | None
    id: str | None
    waits_for: str | None = None
    like: S | None = None
    """Of a cell that waits: its spec at the largest of the values it waits for, what it may cost."""


class TargetFile(Protocol):
    """What every file of conf/table says."""

    @property
    def title(self) -> str: ...

    @property
    def layout(self) -> str: ...


@dataclass(frozen=True)
class Target(ABC, Generic[S]):
    """A table file at a scale, narrowed by what was asked for. Its cells are the one answer to: which runs?"""

    checkout: Path
    name: str
    scale: str
    """"" if the target has none: factorisations and deployment run at one size."""
    file: TargetFile
    """The content of conf/table/<name>.yaml."""

    @property
    def headline(self) -> str:
        """The target for a terminal."""
        return f"{self.name} at scale={self.scale}" if self.scale else self.name

    @abstractmethod
    def cells(self, records: Mapping[str, Record]) -> list[Cell[S]]:
        """Every run, in the order they are best made. Pure: same files and records, same cells."""


def names(checkout: Path) -> list[str]:
    """The targets there are: the files of conf/table/."""
    return choices(checkout / "conf", "table")


def read_yaml(path: Path) -> Json:
    """The content of a YAML file within the limits; a file that several targets read is parsed once."""
    return copy.deepcopy(_parse(path, path.stat().st_mtime_ns))


@cache
def _parse(path: Path, changed: int) -> Json:
    del changed  # part of the key
    limits.check_file(path)
    return _with_numbers(yaml.safe_load(path.read_text(encoding="utf-8")))


_NUMBER = re.compile(r"[-+]?\d{1,9}(\.\d{0,17})?[eE][-+]?\d{1,2}")


def _with_numbers(value: Json) -> Json:
    """1e-3 is a number as it is for Hydra; YAML 1.1 has it a text without a point."""
    if isinstance(value, dict):
        return {key: _with_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def read_table(checkout: Path, name: str) -> tuple[dict[str, Json], str]:
    """The file's content; with ``cells_of: other`` that table's content under this one's title and layout."""
    files = {path.stem: path for folder in reversed(folders(checkout / "conf")) for path in folder.glob("table/*.yaml")}
    content = read_yaml(files.get(name, checkout / "conf" / "table" / f"{name}.yaml"))
    source = content.pop("cells_of", None)
    if source is None:
        return content, name
    one_of(f"conf/table/{name}.yaml: cells_of", source, names(checkout))
    return {**read_yaml(files[source]), **content}, source


def pick(axis: str, given: str, allowed: Sequence[Picked]) -> tuple[Picked, ...]:
    """Those of ``allowed`` that ``given`` ("a,b") names, in the table's own order; UserError for any other name."""
    wanted = [part.strip() for part in given.split(",")]
    by_text = {str(a): a for a in allowed}
    for part in wanted:
        one_of(axis, part, list(by_text), "this table has")
    return tuple(value for text, value in by_text.items() if text in wanted)


def split_overrides(overrides: Sequence[str], axes: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The values of a target's own axes (no name has a quote: those around one are Hydra's), and the overrides that are
    left for every run."""
    pairs = [override.partition("=") for override in overrides]
    own = {key: value.strip("'\"") for key, _, value in pairs if key in axes}
    return own, tuple(f"{key}={value}" for key, _, value in pairs if key not in axes)


def format_value(value: Json) -> str:
    """A value as Hydra's grammar reads it back."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(format_value(v) for v in value) + "]"
    return repr(value) if isinstance(value, float) else str(value)


def with_settings(config: Mapping[str, Json], settings: Settings) -> dict[str, Json]:
    """The composed config with further values, each by its path: what composing it with these overrides would give."""
    changed = dict(config)
    for path, value in settings.items():
        group, _, key = path.partition(".")
        changed[group] = {**changed[group], key: value} if key else value
    return changed

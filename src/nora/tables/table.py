"""A table file: which runs make an artefact."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.config import limits
from nora.config.compose import choices
from nora.config.schema import validate
from nora.errors import UserError

Settings = dict[str, Any]
"""Hyper-parameter keys as typed on the command line → values."""


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class Search:
    """Stage 1 searches ``first`` over its grid; the others reuse ``reuse`` from its choice and search the rest."""

    first: str
    reuse: list[str]
    grid: dict[str, dict[str, list[Any]]]


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class TableFile:
    """The content of conf/table/<name>.yaml."""

    title: str
    layout: str
    columns: list[str]
    rows: list[str]
    below_rule: list[str]
    seeds: dict[str, list[int]]
    paper_seeds: list[int]
    measure: dict[str, list[str]]
    search: Search
    axis: Literal["task", "model", "protocol"] = "task"
    """What the columns are: tasks, base models, or protocols."""
    fixed: list[str] = Field(default_factory=list)
    """Choices every cell shares, as typed for `nora run`: [task=commonsense, protocol=llm_adapters]."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Values every cell shares."""
    caption: list[str] = Field(default_factory=list)
    """Notes below the table."""

    def grid(self, method: str, column: str) -> dict[str, list[Any]]:
        """What is searched for a method in a column: its own grid for that column, else its grid."""
        return self.search.grid.get(f"{method}@{column}", self.search.grid[method])


@dataclass(frozen=True)
class Table:
    """A table file at one scale, narrowed by what was asked for."""

    name: str
    source: str
    """The table whose runs these are: its own name unless the file says ``cells_of``."""
    scale: str
    file: TableFile
    columns: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    search: str
    """"grid": every run of the search; "chosen": only the committed choice."""
    overrides: tuple[str, ...] = field(default=())
    """Further overrides applied to every cell."""

    @property
    def headline(self) -> str:
        return f"{self.name} at scale={self.scale}, search={self.search}"


_AXES = ("task", "model", "protocol", "method", "seed", "search", "scale")


def names(checkout: Path) -> list[str]:
    """The tables there are: the files of conf/table/."""
    return choices(checkout / "conf", "table")


def _read_yaml(path: Path) -> Any:
    return copy.deepcopy(_parse(path, path.stat().st_mtime_ns))


@cache
def _parse(path: Path, changed: int) -> Any:
    del changed  # part of the key: several targets read one file, and each reading takes milliseconds
    limits.check_file(path)
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pick(axis: str, given: str, allowed: Sequence[Any]) -> tuple[Any, ...]:
    """Those of ``allowed`` that ``given`` ("a,b") names; UserError for any other name."""
    wanted = [part.strip() for part in given.split(",")]
    by_text = {str(a): a for a in allowed}
    for part in wanted:
        if part not in by_text:
            near = difflib.get_close_matches(part, by_text, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{axis}: given {part!r}, this table has {', '.join(by_text)}{hint}")
    return tuple(value for text, value in by_text.items() if text in wanted)  # in the table's own order


def read_table(checkout: Path, name: str) -> tuple[dict[str, Any], str]:
    """The file's content; with ``cells_of: other`` that table's content under this one's title and layout."""
    content = _read_yaml(checkout / "conf" / "table" / f"{name}.yaml")
    source = content.pop("cells_of", None)
    if source is None:
        return content, name
    if source not in names(checkout):
        raise UserError(f"conf/table/{name}.yaml: cells_of: given {source!r}, allowed {', '.join(names(checkout))}")
    return {**_read_yaml(checkout / "conf" / "table" / f"{source}.yaml"), **content}, source


def load_table(checkout: Path, name: str, overrides: Sequence[str] = ()) -> Table:
    """The table ``name`` narrowed by ``task=a,b method=… seed=… search=grid|chosen scale=…``.

    Other ``key=value`` pairs are overrides of every run. UserError for a value that is not there.
    """
    axes: dict[str, str] = {}
    rest: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in _AXES:
            axes[key] = value
        else:
            rest.append(override)
    scale = axes.get("scale", "mini")
    (scale,) = pick("scale", scale, choices(checkout / "conf", "scale"))
    content, source = read_table(checkout, name)
    raw = {
        "scale": _read_yaml(checkout / "conf" / "scale" / f"{scale}.yaml")["scale"],
        "table": content,
    }
    try:
        plain = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"conf/table/{name}.yaml: {str(error).splitlines()[0]}") from None
    file: TableFile = validate(plain["table"], TableFile, prefix=f"conf/table/{name}.yaml: ")  # type: ignore[index, call-overload]
    methods = [*file.rows, *file.below_rule]
    (search,) = pick("search", axes.get("search", "grid"), ("grid", "chosen"))
    return Table(
        name=name,
        source=source,
        scale=scale,
        file=file,
        columns=pick(file.axis, axes[file.axis], file.columns) if file.axis in axes else tuple(file.columns),
        methods=pick("method", axes["method"], methods) if "method" in axes else tuple(methods),
        seeds=pick("seed", axes["seed"], file.seeds[scale]) if "seed" in axes else tuple(file.seeds[scale]),
        search=search,
        overrides=(
            *rest,
            *(f"{key}={axes[key]}" for key in ("task", "model", "protocol") if key in axes and key != file.axis),
        ),
    )


def chosen_path(checkout: Path, table: str, scale: str) -> Path:
    """Where the committed choice of a table's hyper-parameters is."""
    return checkout / "conf" / "chosen" / f"{table}.{scale}.yaml"


def read_chosen(checkout: Path, table: str, scale: str) -> Mapping[str, Mapping[str, Settings]]:
    """task → method → settings; UserError where nothing was chosen yet."""
    path = chosen_path(checkout, table, scale)
    if not path.is_file():
        raise UserError(f"{path.relative_to(checkout)}: not there yet; `nora collate tuning` writes it from the search")
    content = _read_yaml(path)
    try:
        chosen: Mapping[str, Mapping[str, Settings]] = {
            task: {method: entry["settings"] for method, entry in methods.items()}
            for task, methods in content["chosen"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        where = path.relative_to(checkout)
        raise UserError(f"{where}: no choice ({error!r}); `nora collate tuning` writes it from the search") from None
    return chosen

"""The paper's printed numbers, one data file per table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import yaml

from nora.files import Json


@dataclass(frozen=True)
class PrintedValue:
    """A printed mean and standard deviation (%). ``doubtful``: the scan leaves it open (†); ``quoted``: the paper has
    it from another paper (‡)."""

    mean: float
    std: float | None
    doubtful: bool
    quoted: bool = False
    digits: int = 1
    """Printed after the point."""

    @property
    def text(self) -> str:
        """As the paper prints it, with its marks."""
        spread = "" if self.std is None else f" ± {self.std:.{self.digits}f}"
        return f"{self.mean:.{self.digits}f}{'†' * self.doubtful}{'‡' * self.quoted}{spread}"


@dataclass(frozen=True)
class PrintedSetting:
    """A printed hyper-parameter: its one value, or the values searched."""

    values: tuple[float | str, ...]
    doubtful: bool


def _read(table: str) -> dict[str, Json] | None:
    resource = files("nora.tables").joinpath("paper", f"{table}.yaml")
    if not resource.is_file():
        return None
    data: dict[str, Json] = yaml.safe_load(resource.read_text(encoding="utf-8"))
    return data


def printed_grid(table: str, model: str | None = None) -> Mapping[tuple[str, str], PrintedValue]:
    """(row, column) → printed value; a printed row average under the column "avg". {} where nothing is printed.

    ``model``: the base model, for a table with a grid for each.
    """
    data = _read(table)
    if data is None:
        return {}
    rows = data["rows"] if model is None else data["models"].get(model, {})
    grid: dict[tuple[str, str], PrintedValue] = {}
    for row, values in rows.items():
        quoted, digits = values.get("quoted", False), values.get("digits", data["digits"])
        spreads = values.get("std", [None] * len(values["mean"]))
        for column, mean, std in zip(data["columns"], values["mean"], spreads, strict=True):
            grid[row, column] = PrintedValue(mean, std, column in values.get("doubtful", []), quoted, digits)
        if "avg" in values:
            grid[row, "avg"] = PrintedValue(values["avg"], None, False, quoted, digits)
    return grid


def printed_settings(table: str) -> Mapping[str, PrintedSetting]:
    """Hyper-parameter → what the paper prints for it, in the paper's order. {} where nothing is printed."""
    data = _read(table)
    if data is None:
        return {}
    return {
        key: PrintedSetting(tuple(values), key in data["doubtful"]) for key, values in data.get("settings", {}).items()
    }

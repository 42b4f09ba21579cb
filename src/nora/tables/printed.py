"""The paper's printed numbers, one data file per table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class PrintedValue:
    """A printed mean and standard deviation (%); ``doubtful`` where the scan leaves it open."""

    mean: float
    std: float | None
    doubtful: bool


def printed_grid(table: str) -> Mapping[tuple[str, str], PrintedValue]:
    """(row, column) → printed value; row averages under the column "avg". {} where nothing is printed."""
    resource = files("nora.tables").joinpath("paper", f"{table}.yaml")
    if not resource.is_file():
        return {}
    data: dict[str, Any] = yaml.safe_load(resource.read_text(encoding="utf-8"))
    grid: dict[tuple[str, str], PrintedValue] = {}
    for row, values in data["rows"].items():
        for column, mean, std in zip(data["columns"], values["mean"], values["std"], strict=True):
            grid[row, column] = PrintedValue(mean, std, column in values["doubtful"])
        grid[row, "avg"] = PrintedValue(values["avg"], None, False)
    return grid

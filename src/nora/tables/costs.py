"""The cost table's target: every other table and figure that has runs of its own, at one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.runs.errors import UserError
from nora.tables.table import names


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class CostsFile:
    """conf/table/cost.yaml."""

    title: str
    layout: str
    targets: Literal["all"] | list[str]


@dataclass(frozen=True)
class Costs:
    """Such a file at a scale. It lists no run: the other targets do."""

    name: str
    file: CostsFile
    scale: str
    targets: tuple[str, ...]

    @property
    def headline(self) -> str:
        return f"{self.name} at scale={self.scale}"


def pick_costs(checkout: Path, file: CostsFile, name: str, overrides: Sequence[str]) -> Costs:
    """The target at the scale asked for; UserError for a target that is not there."""
    known = [other for other in names(checkout) if other != name]
    wanted = known if file.targets == "all" else file.targets
    for target in wanted:
        if target not in known:
            raise UserError(f"conf/table/{name}.yaml: targets: given {target!r}, allowed all, {', '.join(known)}")
    scale = next((value for key, _, value in (o.partition("=") for o in overrides) if key == "scale"), "mini")
    return Costs(name, file, scale, tuple(wanted))

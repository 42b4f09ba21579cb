"""A TARGET by name: the one place that knows which kind of table file it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.config.schema import validate
from nora.errors import UserError, among, one_of
from nora.kinds import AnySpec
from nora.store.record import Record
from nora.tables.cell import Cell, Target, names, read_table, split_overrides
from nora.tables.methods import SpecBook, load_table
from nora.tables.panels import PanelsFile, load_panels
from nora.tables.subjects import DeploymentsFile, SubjectsFile, load_deployments, load_subjects

AnyTarget = Target[AnySpec]


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class CostsFile:
    """conf/table/cost.yaml."""

    title: str
    layout: str
    targets: Literal["all"] | list[str]


@dataclass(frozen=True)
class Costs(Target[AnySpec]):
    """The cost table's target: every other table and figure that has runs of its own, at one scale."""

    file: CostsFile
    targets: tuple[str, ...]
    books: dict[str, SpecBook] = field(default_factory=dict, compare=False, repr=False)

    def others(self) -> list[AnyTarget]:
        """The targets whose runs are counted."""
        words = [f"scale={self.scale}"]
        return [load_target(self.checkout, name, words, self.books) for name in self.targets]

    def cells(self, records: Mapping[str, Record]) -> list[Cell[AnySpec]]:
        """None: the other targets list them."""
        return []


def has_scale(checkout: Path, name: str, scale: str) -> bool:
    """Whether a target has runs at a scale: its file gives seeds for it, or it has no scale at all."""
    seeds = read_table(checkout, name)[0].get("seeds")
    return scale in seeds if isinstance(seeds, Mapping) else True


def load_costs(
    checkout: Path, file: CostsFile, name: str, overrides: Sequence[str], books: dict[str, SpecBook]
) -> Costs:
    known = [other for other in names(checkout) if other != name]
    wanted = known if file.targets == "all" else file.targets
    for target in wanted:
        one_of(f"conf/table/{name}.yaml: targets", target, known, "allowed all,")
    own, _ = split_overrides(overrides, ("scale",))
    scale = own.get("scale", "mini")
    return Costs(checkout, name, scale, file, tuple(t for t in wanted if has_scale(checkout, t, scale)), books)


def load_target(
    checkout: Path, name: str, overrides: Sequence[str] = (), books: dict[str, SpecBook] | None = None
) -> AnyTarget:
    """The target ``name`` narrowed by ``key=value`` words; UserError for a name or value that is not there.

    ``books``: specs that tables loaded together share.
    """
    allowed = names(checkout)
    if name not in allowed:
        raise UserError(f"TARGET: given {name!r}, {among(name, [*allowed, 'all'])}")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"given {override!r}, required key=value")
    own = [o for o in overrides if not o.startswith("exec")]
    content, _ = read_table(checkout, name)
    prefix = f"conf/table/{name}.yaml: "
    if "panels" in content:
        return load_panels(checkout, validate(content, PanelsFile, prefix=prefix), name, own)
    if "inits" in content:
        return load_deployments(checkout, validate(content, DeploymentsFile, prefix=prefix), name, own)
    if "subjects" in content:
        return load_subjects(checkout, validate(content, SubjectsFile, prefix=prefix), name, own)
    if "targets" in content:
        file = validate(content, CostsFile, prefix=prefix)
        return load_costs(checkout, file, name, own, {} if books is None else books)
    return load_table(checkout, name, own, books)


def load_targets(checkout: Path, wanted: Sequence[str], overrides: Sequence[str] = ()) -> list[AnyTarget]:
    """Several targets that share what is worked out for their specs."""
    books: dict[str, SpecBook] = {}
    return [load_target(checkout, name, overrides, books) for name in wanted]

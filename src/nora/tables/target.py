"""A TARGET by name: the one place that knows which kind of table file it is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.config.compose import compose_config
from nora.config.schema import validate
from nora.config.spec import Pins, build_spec, run_id, spec_dict
from nora.errors import UserError
from nora.store.record import Record
from nora.tables.panels import Panels, PanelsFile, panel_cells, pick_panels
from nora.tables.search import Cell, SpecBook, cells
from nora.tables.subjects import Subjects, SubjectsFile, pick_subjects, subject_cells
from nora.tables.table import Table, load_table, names, pick, read_table


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


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class DeploymentsFile:
    """conf/table/deployment.yaml."""

    title: str
    layout: str
    inits: list[str]
    seeds: list[int]
    caption: list[str]


@dataclass(frozen=True)
class Deployments:
    """Such a file with the overrides of every run. It has no scale: the base is the small text model."""

    name: str
    file: DeploymentsFile
    inits: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    scale: str = ""

    @property
    def headline(self) -> str:
        return self.name


def pick_deployments(file: DeploymentsFile, name: str, overrides: Sequence[str]) -> Deployments:
    """The target narrowed by ``seed=…``; other overrides apply to every run."""
    seeds, rest = tuple(file.seeds), []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "seed":
            seeds = pick("seed", value, file.seeds)
        elif key not in ("scale", "search"):  # it has neither; `all` may carry them for the other tables
            rest.append(override)
    return Deployments(name, file, tuple(file.inits), seeds, tuple(rest))


def deployment_cells(target: Deployments, *, checkout: Path) -> list[Cell]:
    """Every run of the target."""
    pins, made = Pins(checkout), []
    composed = compose_config(checkout / "conf", ["kind=deployment", *target.overrides])
    for init in target.inits:
        for seed in target.seeds:
            overrides = ("kind=deployment", f"adapter.init={init}", *target.overrides, f"seed={seed}")
            config = {**composed, "adapter": {**composed["adapter"], "init": init}, "seed": seed}
            spec = spec_dict(build_spec(config, pins))
            made.append(
                Cell(
                    target.name, "", init, "deployment", seed, 1, {"adapter.init": init}, overrides, spec, run_id(spec)
                )
            )
    return made


Target = Table | Panels | Deployments | Subjects | Costs


def load_target(checkout: Path, name: str, overrides: Sequence[str] = ()) -> Target:
    """The target ``name`` narrowed by ``key=value`` words; UserError for a name or value that is not there."""
    allowed = names(checkout)
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"TARGET: given {name!r}, allowed {', '.join(allowed)}, all{hint}")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"given {override!r}, required key=value")
    own = [o for o in overrides if not o.startswith("exec")]
    content, _ = read_table(checkout, name)
    if "panels" in content:
        file: PanelsFile = validate(content, PanelsFile, prefix=f"conf/table/{name}.yaml: ")
        return pick_panels(file, name, own)
    if "inits" in content:
        return pick_deployments(validate(content, DeploymentsFile, prefix=f"conf/table/{name}.yaml: "), name, own)
    if "subjects" in content:
        return pick_subjects(checkout, validate(content, SubjectsFile, prefix=f"conf/table/{name}.yaml: "), name, own)
    if "targets" in content:
        return pick_costs(checkout, validate(content, CostsFile, prefix=f"conf/table/{name}.yaml: "), name, own)
    return load_table(checkout, name, own)


def target_cells(
    target: Target, records: Mapping[str, Record], *, checkout: Path, book: SpecBook | None = None
) -> list[Cell]:
    """``cells(target, records)`` for any kind of target."""
    if isinstance(target, Panels):
        return panel_cells(target, checkout=checkout)
    if isinstance(target, Deployments):
        return deployment_cells(target, checkout=checkout)
    if isinstance(target, Subjects):
        return subject_cells(target, checkout=checkout)
    if isinstance(target, Costs):
        return []
    return cells(target, records, checkout=checkout, book=book)

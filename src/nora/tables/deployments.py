"""The deployment table's runs: one per start and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.runs.compose import compose_config
from nora.runs.spec import Pins, build_spec, run_id, spec_dict
from nora.tables.cells import Cell
from nora.tables.table import pick


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

"""Targets of one run per row and seed: DreamBooth's subjects at a scale, and the deployment table's starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.config.compose import choices, compose_config
from nora.config.pins import Pins
from nora.config.spec import run_id, spec_dict
from nora.errors import UserError
from nora.files import Json
from nora.kinds import DeploymentSpec, DreamboothSpec, build_spec
from nora.store.record import Record
from nora.tables.cell import Cell, Settings, Target, format_value, pick, split_overrides, with_settings

_STRICT = ConfigDict(extra="forbid", strict=True)


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class SubjectsFile:
    """conf/table/<name>.yaml of a DreamBooth table or figure."""

    title: str
    layout: str
    subjects: dict[str, str]
    """Scale → the subject's task."""
    methods: dict[str, dict[str, Json]]
    """Method → settings of its own; {} if the artefact needs no run."""
    seeds: dict[str, list[int]]
    caption: list[str] = field(default_factory=list)
    measure: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subjects(Target[DreamboothSpec]):
    """Such a file at one scale, narrowed by ``method=… seed=…``."""

    file: SubjectsFile
    subject: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    def _compose(self, choice: str) -> dict[str, Json]:
        words = ["kind=dreambooth", f"scale={self.scale}", choice, *self.overrides]
        return compose_config(self.checkout / "conf", words)

    def spec(self, method: str | None = None) -> DreamboothSpec:
        """A method's spec at seed 0, or the kind's default one: prompts, pictures, their hashes."""
        config = self._compose(f"task={self.subject}")
        if method is not None:
            # A method's file refers to nothing else: targets on other subjects share what is composed for it.
            config |= {"method": self._compose(f"method={method}")["method"], "measure": self.file.measure, "seed": 0}
            config = with_settings(config, self.file.methods[method])
        spec = build_spec(config, Pins(self.checkout))
        if not isinstance(spec, DreamboothSpec):
            raise UserError(f"{self.name} is made of kind=dreambooth, given {spec.kind}")
        return spec

    def cells(self, records: Mapping[str, Record]) -> list[Cell[DreamboothSpec]]:
        """Seed by seed, so that the methods of a seed come together."""
        known = {method: self.spec(method) for method in self.methods}
        plain = {method: spec_dict(spec) for method, spec in known.items()}
        return [
            Cell(
                self.name, self.scale, method, self.subject, seed, 1, self.file.methods[method],
                self._words(method, seed), replace(known[method], seed=seed), run_id({**plain[method], "seed": seed}),
            )
            for seed in self.seeds
            for method in self.methods
        ]  # fmt: skip

    def _words(self, method: str, seed: int) -> tuple[str, ...]:
        settings: Settings = self.file.methods[method]
        return (
            "kind=dreambooth", f"scale={self.scale}", f"task={self.subject}", f"method={method}",
            *(f"{key}={format_value(value)}" for key, value in settings.items()),
            f"measure={format_value(self.file.measure)}", *self.overrides, f"seed={seed}",
        )  # fmt: skip


def load_subjects(checkout: Path, file: SubjectsFile, name: str, overrides: Sequence[str]) -> Subjects:
    """The target narrowed by ``key=value`` words; other overrides apply to every run."""
    own, rest = split_overrides(overrides, ("scale", "method", "seed", "task", "search"))  # it has no search
    (scale,) = pick("scale", own.get("scale", "mini"), choices(checkout / "conf", "scale"))
    if scale not in file.subjects:
        raise UserError(f"scale: given {scale!r}, {name} has {', '.join(file.subjects)}")
    if "task" in own:
        pick("task", own["task"], (file.subjects[scale],))
    methods = pick("method", own["method"], tuple(file.methods)) if "method" in own else tuple(file.methods)
    seeds = pick("seed", own["seed"], file.seeds[scale]) if "seed" in own else tuple(file.seeds[scale])
    return Subjects(checkout, name, scale, file, file.subjects[scale], methods, seeds, rest)


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class DeploymentsFile:
    """conf/table/deployment.yaml."""

    title: str
    layout: str
    inits: list[str]
    seeds: list[int]
    caption: list[str]


@dataclass(frozen=True)
class Deployments(Target[DeploymentSpec]):
    """Such a file with the overrides of every run. It has no scale: the base is the small text model."""

    file: DeploymentsFile
    inits: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    def cells(self, records: Mapping[str, Record]) -> list[Cell[DeploymentSpec]]:
        """One per start and seed."""
        pins, made = Pins(self.checkout), []
        composed = compose_config(self.checkout / "conf", ["kind=deployment", *self.overrides])
        if composed.get("kind") != "deployment":
            raise UserError(f"{self.name} is made of kind=deployment, given {composed.get('kind')}")
        for init in self.inits:
            for seed in self.seeds:
                words = ("kind=deployment", f"adapter.init={init}", *self.overrides, f"seed={seed}")
                spec = build_spec({**composed, "adapter": {**composed["adapter"], "init": init}, "seed": seed}, pins)
                if not isinstance(spec, DeploymentSpec):
                    raise UserError(f"{self.name} is made of kind=deployment, given {spec.kind}")
                settings = {"adapter.init": init}
                made.append(Cell(self.name, "", init, "deployment", seed, 1, settings, words, spec, run_id(spec)))
        return made


def load_deployments(checkout: Path, file: DeploymentsFile, name: str, overrides: Sequence[str]) -> Deployments:
    """The target narrowed by ``seed=…``; other overrides apply to every run."""
    own, rest = split_overrides(overrides, ("seed", "scale", "search"))  # it has neither of the last two
    seeds = pick("seed", own["seed"], file.seeds) if "seed" in own else tuple(file.seeds)
    return Deployments(checkout, name, "", file, tuple(file.inits), seeds, rest)

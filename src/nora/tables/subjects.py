"""Targets of one run per row and seed: DreamBooth's subjects at a scale, and the deployment table's starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.config.compose import choices, compose_config
from nora.config.pins import Pins
from nora.config.spec import run_id, spec_dict
from nora.errors import UserError
from nora.files import Json
from nora.kinds import DeploymentSpec, DreamboothSpec, build_spec
from nora.store.record import Record
from nora.tables.cell import Cell, Settings, Target, format_value, pick, split_overrides, with_settings
from nora.tables.choice import equal_rates

_STRICT = ConfigDict(extra="forbid", strict=True)


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class SubjectsFile:
    """conf/table/<name>.yaml of a DreamBooth table or figure."""

    title: str
    layout: str
    subjects: dict[str, str]
    """Scale → the subject's task."""
    methods: dict[str, dict[str, Json]]
    """Row → settings of its own; {} if the artefact needs no run. A row goes by its method's name or says `method`."""
    seeds: dict[str, list[int]]
    caption: list[str] = field(default_factory=list)
    measure: list[str] = field(default_factory=list)
    budget: Annotated[int, Field(ge=1, le=20)] | None = None
    """Learning rates of every row, √10 apart around the scale's own; null: that one alone."""

    def choice(self, row: str) -> tuple[str, Settings]:
        """The method of a row, and its settings."""
        settings = dict(self.methods[row])
        return str(settings.pop("method", row)), settings


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

    def spec(self, method: str | None = None, rate: Settings | None = None) -> DreamboothSpec:
        """A method's spec at seed 0, or the kind's default one: prompts, pictures, their hashes."""
        config = self._compose(f"task={self.subject}")
        if method is not None:
            # A method's file refers to nothing else: targets on other subjects share what is composed for it.
            choice, settings = self.file.choice(method)
            config |= {"method": self._compose(f"method={choice}")["method"], "measure": self.file.measure, "seed": 0}
            config = with_settings(config, {**settings, **(rate or {})})
        spec = build_spec(config, Pins(self.checkout))
        if not isinstance(spec, DreamboothSpec):
            raise UserError(f"{self.name} is made of kind=dreambooth, given {spec.kind}")
        return spec

    def cells(self, records: Mapping[str, Record]) -> list[Cell[DreamboothSpec]]:
        """Seed by seed, so that the methods of a seed come together."""
        rates = self._rates()
        known = {(method, i): self.spec(method, rate) for method in self.methods for i, rate in enumerate(rates)}
        plain = {key: spec_dict(spec) for key, spec in known.items()}
        return [
            Cell(
                self.name, self.scale, method, self.subject, seed, 1, {**self.file.choice(method)[1], **rate},
                self._words(method, rate, seed), replace(known[method, i], seed=seed),
                run_id({**plain[method, i], "seed": seed}),
            )
            for seed in self.seeds
            for method in self.methods
            for i, rate in enumerate(rates)
        ]  # fmt: skip

    def _rates(self) -> list[Settings]:
        if self.file.budget is None or not self.methods:
            return [{}]
        return [{"protocol.lr": rate} for rate in equal_rates(self.spec().protocol.lr, self.file.budget)]

    def _words(self, method: str, rate: Settings, seed: int) -> tuple[str, ...]:
        choice, settings = self.file.choice(method)
        return (
            "kind=dreambooth", f"scale={self.scale}", f"task={self.subject}", f"method={choice}",
            *(f"{key}={format_value(value)}" for key, value in {**settings, **rate}.items()),
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
    variants: list[str] = field(default_factory=list)
    """Rows below the starts': variants of LoRA, from PEFT's ordinary start."""


@dataclass(frozen=True)
class Deployments(Target[DeploymentSpec]):
    """Such a file with the overrides of every run. It has no scale: the base is the small text model."""

    file: DeploymentsFile
    inits: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    @property
    def rows(self) -> dict[str, Settings]:
        """The table's rows and what each sets: the starts, then the variants."""
        starts: dict[str, Settings] = {init: {"adapter.init": init} for init in self.inits}
        kaiming: Settings = {"adapter.init": "kaiming"}
        return starts | {name: {**kaiming, "adapter.variant": name} for name in self.file.variants}

    def cells(self, records: Mapping[str, Record]) -> list[Cell[DeploymentSpec]]:
        """One per row and seed."""
        pins, made = Pins(self.checkout), []
        composed = compose_config(self.checkout / "conf", ["kind=deployment", *self.overrides])
        if composed.get("kind") != "deployment":
            raise UserError(f"{self.name} is made of kind=deployment, given {composed.get('kind')}")
        for row, settings in self.rows.items():
            for seed in self.seeds:
                own = (f"{key}={value}" for key, value in settings.items())
                words = ("kind=deployment", *own, *self.overrides, f"seed={seed}")
                spec = build_spec(with_settings({**composed, "seed": seed}, settings), pins)
                if not isinstance(spec, DeploymentSpec):
                    raise UserError(f"{self.name} is made of kind=deployment, given {spec.kind}")
                made.append(Cell(self.name, "", row, "deployment", seed, 1, settings, words, spec, run_id(spec)))
        return made


def load_deployments(checkout: Path, file: DeploymentsFile, name: str, overrides: Sequence[str]) -> Deployments:
    """The target narrowed by ``seed=…``; other overrides apply to every run."""
    own, rest = split_overrides(overrides, ("seed", "scale", "search"))  # it has neither of the last two
    seeds = pick("seed", own["seed"], file.seeds) if "seed" in own else tuple(file.seeds)
    for word in rest:
        if word.partition("=")[0] in ("adapter.init", "adapter.variant"):
            raise UserError(f"{word}: given with {name}, whose rows say it: {', '.join([*file.inits, *file.variants])}")
    return Deployments(checkout, name, "", file, tuple(file.inits), seeds, rest)

"""Targets made of DreamBooth runs: one per subject, method and seed, at a scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.config.compose import choices, compose_config
from nora.config.spec import Pins, build_spec, run_id, spec_dict
from nora.errors import UserError
from nora.tables.search import Cell, format_value, with_settings
from nora.tables.table import pick


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class SubjectsFile:
    """conf/table/<name>.yaml of a DreamBooth table or figure."""

    title: str
    layout: str
    subjects: dict[str, str]
    """Scale → the subject's task."""
    methods: dict[str, dict[str, Any]]
    """Method → settings of its own; {} where the artefact needs no run."""
    seeds: dict[str, list[int]]
    caption: list[str] = field(default_factory=list)
    measure: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subjects:
    """Such a file at one scale, narrowed by ``method=… seed=…``."""

    name: str
    file: SubjectsFile
    scale: str
    subject: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        return f"{self.name} at scale={self.scale}"


def pick_subjects(checkout: Path, file: SubjectsFile, name: str, overrides: Sequence[str]) -> Subjects:
    """The target narrowed by ``key=value`` words; other overrides apply to every run."""
    scale, methods, seeds, task, rest = "mini", tuple(file.methods), None, None, []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "scale":
            (scale,) = pick("scale", value, choices(checkout / "conf", "scale"))
        elif key == "method":
            methods = pick("method", value, methods)
        elif key == "seed":
            seeds = value
        elif key == "task":
            task = value
        elif key != "search":  # it has none; `all` may carry it for the other tables
            rest.append(override)
    if scale not in file.subjects:
        raise UserError(f"scale: given {scale!r}, {name} has {', '.join(file.subjects)}")
    if task is not None:
        pick("task", task, (file.subjects[scale],))
    chosen = tuple(file.seeds[scale]) if seeds is None else pick("seed", seeds, file.seeds[scale])
    return Subjects(name, file, scale, file.subjects[scale], methods, chosen, tuple(rest))


def _compose(checkout: Path, target: Subjects, choice: str) -> dict[str, Any]:
    return compose_config(checkout / "conf", ["kind=dreambooth", f"scale={target.scale}", choice, *target.overrides])


def subject_spec(checkout: Path, target: Subjects) -> dict[str, Any]:
    """The subject's own part of a spec at the target's scale: prompts, pictures, their hashes."""
    config = _compose(checkout, target, f"task={target.subject}")
    subject: dict[str, Any] = spec_dict(build_spec(config, Pins(checkout)))["task"]
    return subject


def subject_cells(target: Subjects, *, checkout: Path) -> list[Cell]:
    """Every run of the target, seed by seed so that the methods of a seed come together."""
    pins, specs, words = Pins(checkout), {}, {}
    base = _compose(checkout, target, f"task={target.subject}")
    for method in target.methods:
        settings = target.file.methods[method]
        words[method] = (
            "kind=dreambooth", f"scale={target.scale}", f"task={target.subject}", f"method={method}",
            *(f"{key}={format_value(value)}" for key, value in settings.items()),
            f"measure={format_value(target.file.measure)}", *target.overrides,
        )  # fmt: skip
        # A method's file refers to nothing else: targets on other subjects share what is composed for it.
        config = {
            **base, "method": _compose(checkout, target, f"method={method}")["method"],
            "measure": target.file.measure, "seed": 0,
        }  # fmt: skip
        specs[method] = spec_dict(build_spec(with_settings(config, settings), pins))
    made = []
    for seed in target.seeds:
        for method in target.methods:
            spec = {**specs[method], "seed": seed}
            overrides = (*words[method], f"seed={seed}")
            settings = target.file.methods[method]
            made.append(
                Cell(
                    target.name, target.scale, method, target.subject, seed, 1, settings, overrides, spec, run_id(spec)
                )
            )
    return made

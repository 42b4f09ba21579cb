"""Targets made of factorisation runs: figures with panels of curves, and Table 1's grid of rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.config.compose import choices, choices_side_by_side, compose_config
from nora.config.pins import Pins
from nora.config.spec import run_id, spec_dict
from nora.errors import UserError
from nora.files import Json
from nora.kinds import FactorizeSpec, build_spec
from nora.store.record import Record
from nora.tables.cell import Cell, Target, format_value, pick, split_overrides, with_settings

_STRICT = ConfigDict(extra="forbid", strict=True)
_GROUPS = ("problem", "start", "solver")


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class Curve:
    """One line of a panel: a start and a solver with their settings.

    ``sweep`` makes one curve per position of its lists (read side by side); ``label`` is then formatted with the first
    list's value, and ``colour`` counts on.
    """

    label: str
    problem: str
    start: str
    solver: str
    settings: dict[str, Json] = field(default_factory=dict)
    sweep: dict[str, list[Json]] = field(default_factory=dict)
    style: Literal["solid", "dotted", "dashed"] = "solid"
    colour: int | None = None
    seeds: list[int] | None = None
    """Where a curve is too long for every seed of the figure."""
    inset: list[float] | None = None
    """Where a long curve is shown whole: [x, y, width, height] as fractions of the axes."""


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class Panel:
    """A pair of axes."""

    title: str
    metric: Literal["error", "relative", "loss", "weak", "excess"]
    y_label: str
    curves: list[Curve]


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class PanelsFile:
    """conf/table/<name>.yaml of a figure (or of a table measured from curves)."""

    title: str
    layout: str
    seeds: list[int]
    panels: dict[str, Panel]
    caption: list[str]
    shared: dict[str, Json] = field(default_factory=dict)
    """Settings of every curve, unless it sets them itself."""


@dataclass(frozen=True)
class Panels(Target[FactorizeSpec]):
    """Such a file, narrowed by ``panel=…`` and ``seed=…``. It has no scale: factorisation runs at the paper's size."""

    file: PanelsFile
    panels: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    def curve_seeds(self, curve: Curve) -> tuple[int, ...]:
        """The seeds one curve is run with."""
        return tuple(s for s in self.seeds if curve.seeds is None or s in curve.seeds)

    @cached_property
    def _configs(self) -> dict[tuple[str, str], dict[str, Json]]:
        """Group and choice → the composed config; each choice is composed once."""
        conf = self.checkout / "conf"
        side_by_side = {group: choices(conf, group) for group in _GROUPS}
        curves = [curve for name in self.panels for curve in self.file.panels[name].curves]
        wanted = dict.fromkeys((group, str(getattr(curve, group))) for curve in curves for group in _GROUPS)
        fixed = ["kind=factorize", *self.overrides]
        return {key: compose_config(conf, [*fixed, *choices_side_by_side(side_by_side, *key)]) for key in wanted}

    def _spec(self, curve: Curve, pins: Pins) -> FactorizeSpec:
        config = dict(self._configs["problem", curve.problem])
        for group in _GROUPS:
            config[group] = dict(self._configs[group, getattr(curve, group)][group])
        config["seed"] = self.seeds[0]
        spec = build_spec(with_settings(config, curve.settings), pins)
        if not isinstance(spec, FactorizeSpec):
            raise UserError(f"a panel is made of kind=factorize, given {spec.kind}")
        return spec

    def cells(self, records: Mapping[str, Record]) -> list[Cell[FactorizeSpec]]:
        """A run that two curves share is listed for both; one curve's specs differ in the seed alone."""
        pins = Pins(self.checkout)
        made = []
        for panel in self.panels:
            for curve in self.file.panels[panel].curves:
                spec = self._spec(curve, pins)
                plain = spec_dict(spec)
                words = (
                    "kind=factorize",
                    f"problem={curve.problem}",
                    f"start={curve.start}",
                    f"solver={curve.solver}",
                    *(f"{path}={format_value(value)}" for path, value in curve.settings.items()),
                    *self.overrides,
                )
                made += [
                    Cell(
                        self.name, "", curve.label, panel, seed, 1, dict(curve.settings), (*words, f"seed={seed}"),
                        replace(spec, seed=seed), run_id({**plain, "seed": seed}),
                    )
                    for seed in self.curve_seeds(curve)
                ]  # fmt: skip
        return made


def _expand(file: PanelsFile) -> PanelsFile:
    """The file with sweeps written out and shared settings filled in."""
    panels = {}
    for name, panel in file.panels.items():
        curves = []
        for curve in panel.curves:
            lengths = {len(values) for values in curve.sweep.values()}
            if len(lengths) > 1:
                raise UserError(
                    f"panel {name}, {curve.label}: the lists of a sweep are of {sorted(lengths)} values, required equal"
                )
            for i in range(*lengths) if lengths else [None]:
                swept = {} if i is None else {key: values[i] for key, values in curve.sweep.items()}
                label = curve.label if i is None else curve.label.format(*swept.values())
                colour = curve.colour if i is None or curve.colour is None else curve.colour + i
                settings = {**file.shared, **curve.settings, **swept}
                curves.append(replace(curve, label=label, colour=colour, settings=settings, sweep={}))
        panels[name] = replace(panel, curves=curves)
    return replace(file, panels=panels)


def load_panels(checkout: Path, file: PanelsFile, name: str, overrides: Sequence[str]) -> Panels:
    """The target narrowed by ``panel=…`` and ``seed=…``; other overrides apply to every run."""
    file = _expand(file)
    own, rest = split_overrides(overrides, ("panel", "seed", "scale", "search"))  # it has neither of the last two
    panels = pick("panel", own["panel"], tuple(file.panels)) if "panel" in own else tuple(file.panels)
    seeds = pick("seed", own["seed"], file.seeds) if "seed" in own else tuple(file.seeds)
    return Panels(checkout, name, "", file, panels, seeds, rest)


def by_curve(
    records: Mapping[str, Record], cells: Sequence[Cell[FactorizeSpec]]
) -> dict[tuple[str, str], dict[int, Record | None]]:
    """(panel, curve) → seed → record, None if there is none."""
    grouped: dict[tuple[str, str], dict[int, Record | None]] = {}
    for cell in cells:
        grouped.setdefault((cell.column, cell.row), {})[cell.seed] = records.get(cell.id or "")
    return grouped

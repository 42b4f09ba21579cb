"""Targets made of factorisation runs: figures with panels of curves, and Table 1's grid of rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.config.compose import choices, choices_side_by_side, compose_config
from nora.config.spec import Pins, build_spec, run_id, spec_dict
from nora.errors import UserError
from nora.tables.search import Cell, format_value, with_settings
from nora.tables.table import pick

_STRICT = ConfigDict(extra="forbid", strict=True)


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
    settings: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    style: Literal["solid", "dotted", "dashed"] = "solid"
    colour: int | None = None
    seeds: list[int] | None = None
    """Where a curve is too long for every seed of the figure."""
    inset: list[float] | None = None
    """Where a long curve is shown whole: [x, y, width, height] as fractions of the axes."""
    beyond_paper: bool = False


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
    shared: dict[str, Any] = field(default_factory=dict)
    """Settings of every curve, unless it sets them itself."""


@dataclass(frozen=True)
class Panels:
    """Such a file, narrowed by ``panel=…`` and ``seed=…``. It has no scale: factorisation runs at the paper's size."""

    name: str
    file: PanelsFile
    panels: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    scale: str = ""

    @property
    def headline(self) -> str:
        return self.name


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


def curve_seeds(target: Panels, curve: Curve) -> tuple[int, ...]:
    """The seeds one curve is run with."""
    return tuple(s for s in target.seeds if curve.seeds is None or s in curve.seeds)


class PanelSpecs:
    """Specs of a target's curves: groups are composed once per choice, settings are merged in as plain data."""

    def __init__(self, checkout: Path, target: Panels) -> None:
        self._conf = checkout / "conf"
        self._pins = Pins(checkout)
        self._fixed = ["kind=factorize", *target.overrides]
        self._side_by_side = {group: choices(self._conf, group) for group in ("problem", "start", "solver")}
        self._configs: dict[str, dict[str, Any]] = {}
        self._curves: dict[tuple[str, str], dict[str, Any]] = {}

    def _config(self, group: str, choice: str) -> dict[str, Any]:
        key = f"{group}={choice}"
        if key not in self._configs:
            words = choices_side_by_side(self._side_by_side, group, choice)
            self._configs[key] = compose_config(self._conf, [*self._fixed, *words])
        return self._configs[key]

    def spec(self, curve: Curve, seed: int) -> dict[str, Any]:
        """The resolved spec of one curve and seed."""
        config = dict(self._config("problem", curve.problem))
        for group in ("problem", "start", "solver"):
            config[group] = dict(self._config(group, getattr(curve, group))[group])
        config["seed"] = seed
        return spec_dict(build_spec(with_settings(config, curve.settings), self._pins))

    def cell(self, target: Panels, panel: str, key: str, curve: Curve, seed: int) -> Cell:
        """One run of one curve: its spec differs from that of another seed in the seed alone."""
        if (panel, key) not in self._curves:
            self._curves[panel, key] = self.spec(curve, seed)
        spec = {**self._curves[panel, key], "seed": seed}
        overrides = (
            "kind=factorize",
            f"problem={curve.problem}",
            f"start={curve.start}",
            f"solver={curve.solver}",
            *(f"{path}={format_value(value)}" for path, value in curve.settings.items()),
            *target.overrides,
            f"seed={seed}",
        )
        return Cell(target.name, "", key, panel, seed, 1, dict(curve.settings), overrides, spec, run_id(spec))


def panel_cells(target: Panels, *, checkout: Path, specs: PanelSpecs | None = None) -> list[Cell]:
    """Every run of the target; a run that two curves share is listed for both."""
    specs = specs or PanelSpecs(checkout, target)
    made = []
    for name in target.panels:
        for curve in target.file.panels[name].curves:
            made += [specs.cell(target, name, curve.label, curve, seed) for seed in curve_seeds(target, curve)]
    return made


def pick_panels(file: PanelsFile, name: str, overrides: Sequence[str]) -> Panels:
    """The target narrowed by ``panel=…`` and ``seed=…``; other overrides apply to every run."""
    file = _expand(file)
    panels, seeds, rest = tuple(file.panels), tuple(file.seeds), []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "panel":
            panels = pick("panel", value, tuple(file.panels))
        elif key == "seed":
            seeds = pick("seed", value, file.seeds)
        elif key in ("scale", "search"):
            continue  # a factorisation has neither; `all` may carry them for the other tables
        else:
            rest.append(override)
    return Panels(name, file, panels, seeds, tuple(rest))


def by_curve(records: Mapping[str, Any], cells: Sequence[Cell]) -> dict[tuple[str, str], dict[int, Any]]:
    """(panel, curve) → seed → record, None where there is none."""
    grouped: dict[tuple[str, str], dict[int, Any]] = {}
    for cell in cells:
        grouped.setdefault((cell.column, cell.row), {})[cell.seed] = records.get(cell.id or "")
    return grouped

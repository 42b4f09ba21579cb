"""``cells(table, records)``: which runs a table of methods needs, and the hyper-parameters chosen on dev."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nora import tasks
from nora.config.compose import choices, choices_side_by_side, compose_config
from nora.config.spec import Pins, build_spec, run_id, spec_dict
from nora.store.record import Record
from nora.tables.table import Settings, Table, read_chosen


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """The product of a grid, in the order written."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


@dataclass(frozen=True)
class Trial:
    """One setting and its dev outcome averaged over seeds (metric: higher is better; loss in nats)."""

    settings: Settings
    metric: float
    loss: float
    ids: tuple[str, ...]
    complete: bool
    diverged: int


def summarize(settings: Settings, records: Sequence[Record | None], *, metric: str) -> Trial:
    """A trial from its records over the seeds; it is complete where every seed has one."""
    present = [r for r in records if r is not None]
    finished = [r for r in present if r.status == "done"]
    # A protocol that scores no answers on dev is ranked by its dev loss.
    values = [r.metrics["dev"].get(metric, -r.metrics["dev"]["loss"]) for r in finished]
    losses = [r.metrics["dev"]["loss"] for r in finished]
    usable = len(finished) == len(records)
    return Trial(
        settings=settings,
        metric=sum(values) / len(values) if usable else -math.inf,
        loss=sum(losses) / len(losses) if usable else math.inf,
        ids=tuple(r.id for r in present),
        complete=len(present) == len(records),
        diverged=sum(r.status == "diverged" for r in present),
    )


def choose(trials: Sequence[Trial]) -> Trial | None:
    """The best trial: highest metric; ties by lower dev loss, lower lr, smaller ξ. None until all are complete, or
    where every one diverged."""
    if not trials or not all(t.complete for t in trials):
        return None
    best = min(
        trials,
        key=lambda t: (
            -t.metric,
            t.loss,
            t.settings.get("protocol.lr", 0.0),
            t.settings.get("method.xi", 0.0),
            str(sorted(t.settings.items())),
        ),
    )
    return best if math.isfinite(best.metric) else None


@dataclass(frozen=True)
class Cell:
    """One run of a table. A cell that waits for another's choice has no spec yet."""

    table: str
    scale: str
    row: str
    """A method, or a curve."""
    column: str
    """A task, or a panel."""
    seed: int
    stage: int
    settings: Settings
    overrides: tuple[str, ...]
    """What `nora run` is given to make exactly this run."""
    spec: Mapping[str, Any] | None
    id: str | None
    waits_for: str | None = None
    like: Mapping[str, Any] | None = None
    """Of a cell that waits: its spec at the largest of the values it waits for, what it may cost."""


class SpecBook:
    """Specs of a table's cells: composed once per task and method, the grid merged in as plain data. One book serves
    every table of the same ``shared_by``."""

    @staticmethod
    def shared_by(table: Table) -> str:
        """Tables of which this is equal may share a book: all that goes into a spec beside method, column and seed."""
        file = table.file
        return repr((table.scale, table.overrides, file.axis, file.fixed, sorted(file.settings.items())))

    def __init__(self, checkout: Path, table: Table) -> None:
        self._conf = checkout / "conf"
        self._pins = Pins(checkout)
        self._axis = table.file.axis
        self._settings = table.file.settings
        self._scale, self._fixed, self._overrides = f"scale={table.scale}", table.file.fixed, table.overrides
        self._side_by_side = {group: choices(self._conf, group) for group in ("task", "method")}
        self._nodes: dict[tuple[str, str], dict[str, Any]] = {}
        self._specs: dict[str, dict[str, Any]] = {}

    def _config(self, group: str, choice: str) -> dict[str, Any]:
        key = (group, choice)
        if key not in self._nodes:
            if group == "method" or (group == "task" and not self._fixed):  # the same for every table of the scale
                words = choices_side_by_side(self._side_by_side, group, choice)
            else:
                words = [*self._fixed, f"{group}={choice}"]
            self._nodes[key] = compose_config(self._conf, [self._scale, *words, *self._overrides])
        return self._nodes[key]

    def metric(self, column: str) -> str:
        """The metric a column is reported with."""
        task = self._config(self._axis, column)["task"]
        return str(tasks.load(task["suite"], task["name"]).METRIC)

    def spec(self, method: str, column: str, seed: int, measure: list[str], settings: Settings) -> dict[str, Any]:
        """The resolved spec as plain data."""
        return self.identified(method, column, seed, measure, settings)[0]

    def identified(
        self, method: str, column: str, seed: int, measure: list[str], settings: Settings
    ) -> tuple[dict[str, Any], str]:
        """The resolved spec and its id; that of another seed differs in the seed alone."""
        key = repr((method, column, measure, sorted(settings.items())))
        if key not in self._specs:
            self._specs[key] = self._build(method, column, seed, measure, settings)
        spec = {**self._specs[key], "seed": seed}
        return spec, run_id(spec)

    def _build(self, method: str, column: str, seed: int, measure: list[str], settings: Settings) -> dict[str, Any]:
        config = dict(self._config(self._axis, column))
        config["method"] = self._config("method", method)["method"]
        config["seed"] = seed
        config["measure"] = measure
        return spec_dict(build_spec(with_settings(config, {**self._settings, **settings}), self._pins))


def with_settings(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The composed config with further values, each by its path: what composing it with these overrides would give."""
    changed = dict(config)
    for path, value in settings.items():
        group, _, key = path.partition(".")
        changed[group] = {**changed[group], key: value} if key else value
    return changed


def format_value(value: Any) -> str:
    """A value as Hydra's grammar reads it back."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(format_value(v) for v in value) + "]"
    return repr(value) if isinstance(value, float) else str(value)


def _measure(table: Table, method: str) -> list[str]:
    return table.file.measure.get(method, table.file.measure["default"])


def make_cell(table: Table, book: SpecBook, method: str, task: str, seed: int, stage: int, settings: Settings) -> Cell:
    """A cell whose settings are all known."""
    measure = _measure(table, method)
    spec, identity = book.identified(method, task, seed, measure, settings)
    overrides = (
        f"scale={table.scale}",
        *table.file.fixed,
        f"{table.file.axis}={task}",
        f"method={method}",
        *(f"{key}={format_value(value)}" for key, value in {**table.file.settings, **settings}.items()),
        f"measure={format_value(measure)}",
        *table.overrides,
        f"seed={seed}",
    )
    return Cell(table.name, table.scale, method, task, seed, stage, settings, overrides, spec, identity)


def trials(
    table: Table, book: SpecBook, method: str, task: str, records: Mapping[str, Record], reused: Settings | None = None
) -> list[Trial]:
    """Every grid point of one method and task with its dev outcome over the table's seeds."""
    outcome = []
    for point in grid_points(table.file.grid(method, task)):
        settings = {**(reused or {}), **point}
        ids = [make_cell(table, book, method, task, seed, 0, settings).id for seed in table.seeds]
        outcome.append(summarize(settings, [records.get(i or "") for i in ids], metric=book.metric(task)))
    return outcome


def chosen_settings(
    table: Table, book: SpecBook, method: str, task: str, records: Mapping[str, Record], checkout: Path
) -> Settings | None:
    """The settings a method is reported with on a task, None where the search is not complete."""
    if table.search == "chosen":
        return read_chosen(checkout, table.source, table.scale).get(task, {}).get(method)
    reused = reused_settings(table, book, task, records) if method != table.file.search.first else {}
    if reused is None:
        return None
    best = choose(trials(table, book, method, task, records, reused))
    return best.settings if best is not None else None


def reused_settings(table: Table, book: SpecBook, task: str, records: Mapping[str, Record]) -> Settings | None:
    """What stage 2 takes over from stage 1's choice on a task, None while that is open."""
    search = table.file.search
    if not search.reuse:
        return {}
    best = choose(trials(table, book, search.first, task, records))
    return {key: best.settings[key] for key in search.reuse} if best is not None else None


def cells(table: Table, records: Mapping[str, Record], *, checkout: Path, book: SpecBook | None = None) -> list[Cell]:
    """Every run of a table, in the order they are best made. Pure: same files and records, same cells.

    With ``search=grid`` stage 1 is the first method's whole grid and stage 2 the others'; a stage-2 cell whose reused
    setting is still open is listed with ``waits_for`` and without a spec. With ``search=chosen`` there is one cell
    per method, task and seed.
    """
    book = book or SpecBook(checkout, table)
    search = table.file.search
    made: list[Cell] = []
    if table.search == "chosen":
        chosen = read_chosen(checkout, table.source, table.scale)
        for task in table.columns:
            for method in table.methods:
                settings = chosen.get(task, {}).get(method)
                if settings is None:
                    made += _waiting_cells(table, book, method, task, {}, "a choice")
                else:
                    made += [make_cell(table, book, method, task, seed, 1, settings) for seed in table.seeds]
        return made
    for task in table.columns:
        if search.first in table.methods:
            for point in grid_points(table.file.grid(search.first, task)):
                made += [make_cell(table, book, search.first, task, seed, 1, point) for seed in table.seeds]
    for task in table.columns:
        reused = reused_settings(table, book, task, records)
        for method in table.methods:
            if method == search.first:
                continue
            for point in grid_points(table.file.grid(method, task)):
                if reused is None:
                    made += _waiting_cells(table, book, method, task, point, search.first)
                else:
                    made += [make_cell(table, book, method, task, seed, 2, {**reused, **point}) for seed in table.seeds]
    return made


def _waiting_cells(table: Table, book: SpecBook, method: str, task: str, point: Settings, waits_for: str) -> list[Cell]:
    """A grid point's cells over the seeds while what they reuse is not chosen."""
    grid = table.file.grid(table.file.search.first, task)
    largest = {key: max(grid[key]) for key in table.file.search.reuse}
    like = book.spec(method, task, table.seeds[0], _measure(table, method), {**largest, **point})
    return [
        Cell(table.name, table.scale, method, task, seed, 2, point, (), None, None, waits_for, like)
        for seed in table.seeds
    ]

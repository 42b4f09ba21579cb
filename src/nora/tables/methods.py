"""Tables of methods (2, 4, 5, 7, 8, 9, the ablation, tuning): a search in two stages, per column and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from nora import tasks
from nora.config import limits
from nora.config.compose import choices, choices_side_by_side, compose_config, folders, parse_value
from nora.config.pins import Pins
from nora.config.schema import validate
from nora.config.spec import run_id, spec_dict
from nora.errors import UserError
from nora.files import Json
from nora.kinds import FinetuneSpec, build_spec
from nora.store.record import Record
from nora.tables.cell import (
    Cell,
    Settings,
    Target,
    format_value,
    pick,
    read_table,
    read_yaml,
    split_overrides,
    with_settings,
)
from nora.tables.choice import Trial, choose, chosen_path, equal_rates, grid_points, read_chosen, summarize

_STRICT = ConfigDict(extra="forbid", strict=True)
_AXES = ("task", "model", "protocol", "method", "seed", "search", "scale")


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class Search:
    """Stage 1 searches ``first`` over its grid; the others reuse ``reuse`` from its choice and search the rest."""

    first: str
    reuse: list[str]
    grid: dict[str, dict[str, list[Json]]]
    seeds: dict[str, list[int]] = Field(default_factory=dict)
    """Scale → the seeds of the search, where they are not the table's: then stage 3 repeats the choice over those."""


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class TableFile:
    """The content of conf/table/<name>.yaml."""

    title: str
    layout: str
    columns: list[str]
    rows: list[str]
    below_rule: list[str]
    seeds: dict[str, list[int]]
    measure: dict[str, list[str]]
    search: Search = Field(default_factory=lambda: Search(first="lora", reuse=[], grid={}))
    budget: Annotated[int, Field(ge=1, le=20)] | None = None
    """Trials of every method in place of a search of its own: that many learning rates, half a decade apart, the middle
    of them (in logarithm) the scale's own."""
    axis: Literal["task", "model", "protocol"] = "task"
    """What the columns are: tasks, base models, or protocols."""
    fixed: list[str] = Field(default_factory=list)
    """Choices every cell shares, as typed for `nora run`: [task=commonsense, protocol=llm_adapters]."""
    settings: dict[str, Json] = Field(default_factory=dict)
    """Values every cell shares."""
    caption: list[str] = Field(default_factory=list)
    """Notes below the table."""
    runs: Literal["grid", "chosen"] = "grid"
    """Which runs it has where ``search=`` is not typed: the whole search, or the committed choice over the seeds."""

    def grid(self, method: str, column: str) -> dict[str, list[Json]]:
        """What is searched for a method in a column: its own grid for that column, else its grid."""
        return self.search.grid.get(f"{method}@{column}", self.search.grid[method])


class SpecBook:
    """Specs of a table's cells: composed once per task and method, the grid merged in as plain data. Tables that share
    all that goes into a spec beside method, column and seed share a book."""

    def __init__(self, checkout: Path, scale: str, file: TableFile, overrides: tuple[str, ...]) -> None:
        self._conf = checkout / "conf"
        self._pins = Pins(checkout)
        self._file, self._scale, self._overrides = file, f"scale={scale}", overrides
        self._side_by_side = {group: choices(self._conf, group) for group in ("task", "method")}
        self._nodes: dict[tuple[str, str], dict[str, Json]] = {}
        self._specs: dict[str, tuple[FinetuneSpec, dict[str, Json]]] = {}
        self._seeded: dict[tuple[str, int], tuple[FinetuneSpec, str]] = {}

    def _config(self, group: str, choice: str) -> dict[str, Json]:
        key = (group, choice)
        if key not in self._nodes:
            if group == "method" or (group == "task" and not self._file.fixed):  # the same for all tables of the scale
                words = choices_side_by_side(self._side_by_side, group, choice)
            else:
                words = [*self._file.fixed, f"{group}={choice}"]
            self._nodes[key] = compose_config(self._conf, [self._scale, *words, *self._overrides])
        return self._nodes[key]

    def metric(self, column: str) -> str:
        """The metric a column is reported with."""
        return str(tasks.of(self._config(self._file.axis, column)["task"]).METRIC)

    def spec(
        self, method: str, column: str, seed: int, measure: list[str], settings: Settings
    ) -> tuple[FinetuneSpec, str]:
        """The resolved spec and its id; that of another seed differs in the seed alone."""
        key = repr((method, column, measure, sorted(settings.items())))
        if (key, seed) not in self._seeded:
            if key not in self._specs:
                config = dict(self._config(self._file.axis, column))
                config |= {"method": self._config("method", method)["method"], "seed": seed, "measure": measure}
                made = build_spec(with_settings(config, {**self._file.settings, **settings}), self._pins)
                if not isinstance(made, FinetuneSpec):
                    raise UserError(f"a table of methods is made of kind=finetune, given {made.kind}")
                self._specs[key] = made, spec_dict(made)
            spec, plain = self._specs[key]
            self._seeded[key, seed] = replace(spec, seed=seed), run_id({**plain, "seed": seed})
        return self._seeded[key, seed]


@dataclass(frozen=True)
class Table(Target[FinetuneSpec]):
    """A table file at one scale, narrowed by what was asked for."""

    file: TableFile
    source: str
    """The table whose runs these are: its own name unless the file says ``cells_of``."""
    columns: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    search_seeds: tuple[int, ...]
    """The seeds a setting is tried with."""
    search: str
    """"grid": every run of the search; "chosen": only the committed choice."""
    overrides: tuple[str, ...] = ()
    """Further overrides applied to every cell."""
    books: dict[str, SpecBook] = field(default_factory=dict, compare=False, repr=False)

    @property
    def headline(self) -> str:
        return f"{self.name} at scale={self.scale}, search={self.search}"

    @property
    def book(self) -> SpecBook:
        """The specs of its cells."""
        file = self.file
        shared = repr((self.scale, self.overrides, file.axis, file.fixed, sorted(file.settings.items())))
        if shared not in self.books:
            self.books[shared] = SpecBook(self.checkout, self.scale, file, self.overrides)
        return self.books[shared]

    @property
    def committed(self) -> Mapping[str, Mapping[str, Settings]]:
        """Task → method → the settings in conf/chosen. UserError if nothing was chosen yet, unless that is the only
        kind of run the table has: its cells then wait."""
        if self.file.runs == "chosen" and not chosen_path(self.checkout, self.source, self.scale).is_file():
            return {}
        return read_chosen(self.checkout, self.source, self.scale)

    def spec(self, method: str, column: str) -> FinetuneSpec:
        """A method's spec in a column as its files have it, before anything is searched."""
        return self.book.spec(method, column, self.seeds[0], [], {})[0]

    def cell(self, method: str, column: str, seed: int, stage: int, settings: Settings) -> Cell[FinetuneSpec]:
        """A cell whose settings are all known."""
        file = self.file
        measure = file.measure.get(method, file.measure["default"])
        spec, identity = self.book.spec(method, column, seed, measure, settings)
        overrides = (
            f"scale={self.scale}",
            *file.fixed,
            f"{file.axis}={column}",
            f"method={method}",
            *(f"{key}={format_value(value)}" for key, value in {**file.settings, **settings}.items()),
            f"measure={format_value(measure)}",
            *self.overrides,
            f"seed={seed}",
        )
        return Cell(self.name, self.scale, method, column, seed, stage, settings, overrides, spec, identity)

    def trials(
        self, method: str, column: str, records: Mapping[str, Record], reused: Settings | None = None
    ) -> list[Trial]:
        """Every grid point of one method and column with its dev outcome over the search's seeds."""
        outcome = []
        for point in grid_points(self.file.grid(method, column)):
            settings = {**(reused or {}), **point}
            ids = [self.cell(method, column, seed, 0, settings).id for seed in self.search_seeds]
            found = [records.get(i or "") for i in ids]
            outcome.append(summarize(settings, found, metric=self.book.metric(column)))
        return outcome

    def reused(self, column: str, records: Mapping[str, Record]) -> Settings | None:
        """What stage 2 takes over from stage 1's choice in a column, None while that is open."""
        search = self.file.search
        if not search.reuse:
            return {}
        best = choose(self.trials(search.first, column, records))
        return {key: best.settings[key] for key in search.reuse} if best is not None else None

    def chosen(self, method: str, column: str, records: Mapping[str, Record]) -> Settings | None:
        """The settings a method is reported with in a column, None if the search is not complete."""
        if self.search == "chosen":
            return self.committed.get(column, {}).get(method)
        reused = self.reused(column, records) if method != self.file.search.first else {}
        if reused is None:
            return None
        best = choose(self.trials(method, column, records, reused))
        return best.settings if best is not None else None

    def cells(self, records: Mapping[str, Record]) -> list[Cell[FinetuneSpec]]:
        """With ``search=grid`` stage 1 is the first method's whole grid and stage 2 the others'; a stage-2 cell whose
        reused setting is still open is listed with ``waits_for`` and without a spec. With ``search=chosen`` there is
        one cell per method, column and seed."""
        if self.search == "chosen":
            return self._chosen_cells()
        first = self.file.search.first
        made: list[Cell[FinetuneSpec]] = []
        for column in self.columns if first in self.methods else ():
            for point in grid_points(self.file.grid(first, column)):
                made += [self.cell(first, column, seed, 1, point) for seed in self.search_seeds]
        for column in self.columns:
            reused = self.reused(column, records)
            for method in self.methods:
                if method == first:
                    continue
                for point in grid_points(self.file.grid(method, column)):
                    if reused is None:
                        made += self._waiting(method, column, point, first, self.search_seeds, stage=2)
                    else:
                        made += [self.cell(method, column, seed, 2, {**reused, **point}) for seed in self.search_seeds]
        return [*made, *self._repeated_cells(records)]

    def _repeated_cells(self, records: Mapping[str, Record]) -> list[Cell[FinetuneSpec]]:
        """Stage 3, if the search has seeds of its own: each method's choice over the table's seeds."""
        made: list[Cell[FinetuneSpec]] = []
        if self.scale not in self.file.search.seeds:
            return made
        for column in self.columns:
            for method in self.methods:
                settings = self.chosen(method, column, records)
                if settings is None:
                    point = grid_points(self.file.grid(method, column))[0]
                    made += self._waiting(method, column, point, "its search", self.seeds, stage=3)
                else:
                    made += [self.cell(method, column, seed, 3, settings) for seed in self.seeds]
        return made

    def _chosen_cells(self) -> list[Cell[FinetuneSpec]]:
        chosen = self.committed
        made: list[Cell[FinetuneSpec]] = []
        for column in self.columns:
            for method in self.methods:
                settings = chosen.get(column, {}).get(method)
                if settings is None:
                    made += self._waiting(method, column, {}, "a choice", self.seeds, stage=2)
                else:
                    made += [self.cell(method, column, seed, 1, settings) for seed in self.seeds]
        return made

    def _waiting(
        self, method: str, column: str, point: Settings, waits_for: str, seeds: Sequence[int], *, stage: int
    ) -> list[Cell[FinetuneSpec]]:
        """A grid point's cells over some seeds while what they follow from is not chosen."""
        file = self.file
        grid = file.grid(file.search.first, column)
        largest = {key: max(grid[key]) for key in file.search.reuse}
        measure = file.measure.get(method, file.measure["default"])
        like, _ = self.book.spec(method, column, self.seeds[0], measure, {**largest, **point})
        return [
            Cell(self.name, self.scale, method, column, seed, stage, point, (), None, None, waits_for, like)
            for seed in seeds
        ]


def _narrowed(search: Search, typed: Settings) -> Search:
    """The search with a typed value in place of the values of every grid that has its key: a method without the
    setting (ξ of LoRA) keeps its own."""
    grid = {
        name: {k: [typed[k]] if k in typed else v for k, v in points.items()} for name, points in search.grid.items()
    }
    return replace(search, grid=grid)


def load_table(
    checkout: Path, name: str, overrides: Sequence[str] = (), books: dict[str, SpecBook] | None = None
) -> Table:
    """The table ``name`` narrowed by ``task=a,b method=… seed=… search=grid|chosen scale=…``.

    Other ``key=value`` pairs are overrides of every run. UserError for a value that is not there.
    """
    axes, rest = split_overrides(overrides, _AXES)
    (scale,) = pick("scale", axes.get("scale", "mini"), choices(checkout / "conf", "scale"))
    content, source = read_table(checkout, name)
    places = [folder / "scale" / f"{scale}.yaml" for folder in folders(checkout / "conf")]
    raw = {"scale": read_yaml(next(path for path in places if path.is_file()))["scale"], "table": content}
    try:
        with limits.bounded_resolution(f"conf/table/{name}.yaml"):
            plain: Json = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"conf/table/{name}.yaml: {str(error).splitlines()[0]}") from None
    file = validate(plain["table"], TableFile, prefix=f"conf/table/{name}.yaml: ")
    if file.budget is not None:
        rates = equal_rates(float(raw["scale"]["lr"]), file.budget)
        grid = {method: {"protocol.lr": rates} for method in (*file.rows, *file.below_rule)}
        file = replace(file, search=replace(file.search, grid=grid))
    if scale not in file.seeds:
        raise UserError(f"scale: given {scale}, allowed for {name}: {', '.join(file.seeds)}")
    methods = [*file.rows, *file.below_rule]
    (search,) = pick("search", axes.get("search", file.runs), ("grid", "chosen"))
    typed = {key: value for key, _, value in (word.partition("=") for word in rest)}
    searched = {key for points in file.search.grid.values() for key in points}
    if searched & set(typed):
        given = {key: parse_value(key, value) for key, value in typed.items() if key in searched}
        file = replace(file, search=_narrowed(file.search, given))
        rest = tuple(word for word in rest if word.partition("=")[0] not in searched)
    others = [f"{key}={axes[key]}" for key in ("task", "model", "protocol") if key in axes and key != file.axis]
    seeds = pick("seed", axes["seed"], file.seeds[scale]) if "seed" in axes else tuple(file.seeds[scale])
    return Table(
        checkout=checkout,
        name=name,
        scale=scale,
        file=file,
        source=source,
        columns=pick(file.axis, axes[file.axis], file.columns) if file.axis in axes else tuple(file.columns),
        methods=pick("method", axes["method"], methods) if "method" in axes else tuple(methods),
        seeds=seeds,
        search_seeds=tuple(file.search.seeds.get(scale, seeds)),
        search=search,
        overrides=(*rest, *others),
        books={} if books is None else books,
    )

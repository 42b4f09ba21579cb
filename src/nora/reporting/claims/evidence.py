"""What a claim is tried with, what one scale says of it, and what it would take where nothing has run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nora.files import Json
from nora.kinds import AnySpec
from nora.reporting.inference import seeds_needed
from nora.reporting.reported import Reported, report
from nora.store.record import Record
from nora.tables.cell import Cell
from nora.tables.estimate import device_of, estimate, measured_hours
from nora.tables.methods import SpecBook, Table
from nora.tables.printed import printed_grid
from nora.tables.subjects import Subjects
from nora.tables.target import AnyTarget, has_scale, load_target

HOLDS, NOISE, DIFFERS, NOT_RUN = "holds", "within noise", "differs", "not run"
PRINTED = "printed"
"""The scale of the paper's own numbers."""


@dataclass(frozen=True)
class Outcome:
    """What one scale says of a claim. Where ``p`` is given the verdict is the judge's (judged.py), after Holm."""

    verdict: str = NOT_RUN
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = "points"
    n: str = ""
    visible: float | None = None
    """The smallest difference found with 80 % power."""
    p: float | None = None
    chance: bool = False
    runs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Where the tests look: the records, the checkout's targets, and what benchmarks and the ledger left in results."""

    checkout: Path
    records: Mapping[str, Record]
    results: Path
    targets: Sequence[AnyTarget] = ()
    """Those that are loaded already."""
    _known: dict[tuple[str, ...], Json] = field(default_factory=dict, compare=False, repr=False)
    _books: dict[str, SpecBook] = field(default_factory=dict, compare=False, repr=False)

    def target(self, name: str, scale: str = "") -> AnyTarget | None:
        """None where the target has no such scale."""
        if scale and not has_scale(self.checkout, name, scale):
            return None
        words = [f"scale={scale}"] if scale else []

        def load() -> AnyTarget:
            loaded = (t for t in self.targets if (t.name, t.scale) == (name, scale))
            return next(loaded, None) or load_target(self.checkout, name, words, self._books)

        return self._once(("target", name, scale), load)

    def reported(self, table: Table) -> dict[tuple[str, str], Reported]:
        return self._once(("reported", table.name, table.scale), lambda: report(table, self.records))

    def json(self, name: str) -> Json | None:
        """A file below results/."""
        path = self.results / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _once(self, key: tuple[str, ...], make: Callable[[], Json]) -> Json:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def takes(
    evidence: Evidence, target: AnyTarget, methods: Sequence[str], columns: Sequence[str], effect: float | None = None
) -> str:
    """What the claim would take: the runs that lack a record, their hours as the plan estimates them, the seeds."""
    if isinstance(target, Table):
        first = target.file.search.first if target.file.search.reuse else None
        wanted = tuple(m for m in target.methods if m in methods or m == first)
        target = replace(target, methods=wanted, columns=tuple(c for c in target.columns if c in columns))
    elif isinstance(target, Subjects):
        target = replace(target, methods=tuple(m for m in target.methods if m in methods))
    cells: Sequence[Cell[AnySpec]] = target.cells(evidence.records)
    lacking = [c for c in cells if c.id is None or c.id not in evidence.records]
    # Of this target's runs alone: what one tries out must not change what is committed.
    like = measured_hours(evidence.records[c.id] for c in cells if c.id is not None and c.id in evidence.records)
    hours = [h for c in lacking if (h := estimate(c, like, device_of(c))[0]) is not None]
    device = "GPU-hours" if target.scale == "paper" else "hours of one CPU thread"
    cost = f"about {_round(sum(hours))} {device}" if hours else "hours unknown"
    seeds = len({c.seed for c in cells})
    text = f"takes {len(lacking)} runs, {cost}, {seeds} seed{'s' if seeds > 1 else ''}"
    return text + (_printed_seeds(target, methods, effect) if effect and target.scale == "paper" else "")


def _printed_seeds(target: AnyTarget, methods: Sequence[str], effect: float) -> str:
    """How many seeds find the effect, by the spreads the paper prints (not paired, so the most)."""
    spreads = (
        [v.std for (m, c), v in printed_grid(target.name).items() if m in methods and c != "avg"]
        if isinstance(target, Table) and "rows" in _raw(target.name)
        else []
    )
    known = [s for s in spreads if s is not None]
    if not known:
        return ""
    # One that cannot be read counts as the others do.
    spread = math.sqrt(math.fsum(s * s for s in known) / len(known) * len(spreads)) / (len(spreads) / 2)
    return f"; {effect:+g} needs {seeds_needed(effect, spread)} by the printed spreads"


def _raw(table: str) -> Json:
    from importlib.resources import files

    import yaml

    path = files("nora.tables").joinpath("paper", f"{table}.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _round(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"

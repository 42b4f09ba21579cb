"""What a table of methods × tasks reports: per cell the chosen settings, a run per seed, and why one is not there.

And what its seeds and test rows can show, before anything runs: for ``nora plan``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from nora.kinds import AnySpec
from nora.reporting import labels
from nora.reporting.inference import Ranking, rank_methods, seeds_needed, smallest_difference
from nora.reporting.statistics import Summary, summarize
from nora.store.record import Record
from nora.store.states import Snapshot, State
from nora.tables.cell import Cell, Settings
from nora.tables.methods import Table
from nora.tables.target import AnyTarget

MISSING = "missing"
_WORST_FIRST = ("diverged", "damaged", "newer", "stale", "failed", "interrupted", "running")


def gap(states: Sequence[str]) -> str:
    """Why runs in these states make no number: the worst state first, and how many are in it; "" where all are done."""
    counted = Counter(states)
    if counted["done"] == len(states):
        return ""
    worst = next((s for s in _WORST_FIRST if counted[s]), MISSING)
    if worst == MISSING:
        return f"{MISSING} ({counted['done']}/{len(states)})"
    return f"{worst} {counted[worst]}/{len(states)}"


def absent(states: Sequence[str]) -> str:
    """What is not done, counted: "11 of 14 runs are not there: 9 missing, 2 failed"; "" where all are."""
    others = Counter(state for state in states if state != "done")
    if not others:
        return ""
    counted = ", ".join(f"{count} {state}" for state, count in sorted(others.items()))
    return f"{others.total()} of {len(states)} runs are not there: {counted}"


def states_of(cells: Sequence[Cell[AnySpec]], records: Mapping[str, Record]) -> tuple[State, ...]:
    """The state of each cell's run."""
    snapshot = as_snapshot(records)
    return tuple(snapshot.state(cell.id, cell.spec).state for cell in cells)


def as_snapshot(records: Mapping[str, Record]) -> Snapshot:
    """Records alone are a snapshot in which nothing else is known."""
    return records if isinstance(records, Snapshot) else Snapshot(records)


@dataclass(frozen=True)
class Reported:
    """What one method reached on one task: its runs over the seeds and what is missing."""

    settings: Settings | None
    ids: tuple[str, ...]
    records: tuple[Record | None, ...]
    states: tuple[str, ...] = ()
    """The state of each seed's run."""
    why: str = MISSING
    """Why nothing is chosen."""
    searched: tuple[str, ...] = ()
    """Where nothing is chosen: the runs of its search, as far as they can be named."""

    @property
    def behind(self) -> tuple[str, ...]:
        """The runs a reader is led to."""
        return self.ids or self.searched

    @property
    def complete(self) -> bool:
        return bool(self.records) and all(r is not None and r.status == "done" for r in self.records)

    def values(self, read: Callable[[Record], float]) -> Summary | None:
        """Mean over all seeds, None unless every seed has a finished record."""
        return summarize([read(r) for r in self.records if r is not None]) if self.complete else None

    def gap(self) -> str:
        """Why there is no number: the worst state first, and how many of the seeds are in it."""
        return self.why if self.settings is None else gap(self.states)

    def dirty(self) -> int:
        """How many of the runs were made from a checkout with uncommitted changes."""
        return sum(bool(r.run.get("dirty")) for r in self.records if r is not None)


def report(table: Table, records: Mapping[str, Record]) -> dict[tuple[str, str], Reported]:
    """(method, column) → what is reported."""
    outcome = {}
    for column in table.columns:
        for method in table.methods:
            settings = table.chosen(method, column, records)
            if settings is None:
                why, searched = _unchosen(table, method, column, records)
                outcome[method, column] = Reported(None, (), (), why=why, searched=searched)
                continue
            made = [table.cell(method, column, seed, 0, settings) for seed in table.seeds]
            ids = tuple(str(cell.id) for cell in made)
            found = tuple(records.get(i) for i in ids)
            outcome[method, column] = Reported(settings, ids, found, states_of(made, records))
    return outcome


def ranked(table: Table, reported: Mapping[tuple[str, str], Reported]) -> tuple[list[str], Ranking] | None:
    """The columns that are whole for every method, and the methods' mean ranks over them by the mean test score; None
    for fewer than two such columns or three methods."""
    whole = [c for c in table.columns if all(reported[m, c].complete for m in table.methods)]
    if len(whole) < 2 or len(table.methods) < 3:
        return None
    scores: dict[str, list[float]] = {m: [] for m in table.methods}
    for column in whole:
        metric = table.book.metric(column)
        for method in table.methods:
            found = [float(r.metrics["test"][metric]) for r in reported[method, column].records if r is not None]
            scores[method].append(fmean(found))
    return whole, rank_methods(scores)


def _unchosen(table: Table, method: str, column: str, records: Mapping[str, Record]) -> tuple[str, tuple[str, ...]]:
    """Why a method has no settings on a task, and its search's runs: what they lack, or that every setting diverged."""
    if table.search == "chosen":
        return MISSING, ()
    reused = table.reused(column, records) if method != table.file.search.first else {}
    if reused is None:
        return MISSING, ()
    tried = table.trials(method, column, records, reused)
    searched = [table.cell(method, column, seed, 0, t.settings) for t in tried for seed in table.search_seeds]
    ids = tuple(str(cell.id) for cell in searched)
    if all(t.complete for t in tried):
        return f"diverged ({sum(t.diverged for t in tried)}/{sum(len(t.ids) for t in tried)})", ids
    states = states_of(searched, records)
    return (gap(states) if {*states} & {"damaged", "newer", "stale", "failed"} else MISSING), ids


def binomial_error(accuracy: float, n: int) -> float:
    """Standard error of a share of n independent answers."""
    return math.sqrt(accuracy * (1 - accuracy) / n)


def answer_notes(done: Sequence[Record]) -> list[str]:
    """Of finished runs that answered sets of questions: the largest standard error, the unanswered ones of each set."""
    scores = [(name, s) for r in done for name, s in r.metrics["test"].get("sets", {}).items()]
    if not scores:
        return []
    sizes = {s["n"] for _, s in scores}
    rows = f"{min(sizes):,}" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    names = list(dict.fromkeys(name for name, _ in scores))
    missed = {name: sum(s["unanswered"] for other, s in scores if other == name) for name in names}
    by_set = ", ".join(f"{labels.task(name)} {count}" for name, count in missed.items() if count)
    where = f" ({by_set})" if by_set and len(names) > 1 else ""
    return [
        f"{rows} questions per set: a single run's accuracy has a binomial standard error of up to "
        f"{100 * binomial_error(0.5, min(sizes)):.1f} points{' on the smallest set' if len(names) > 1 else ''}.",
        f"{sum(missed.values()):,} of {sum(s['n'] for _, s in scores):,} answers match no pattern of their set{where}; "
        "they count as wrong.",
    ]


_WANTED = 0.5
"""Points: the smallest improvement the paper calls one (Table 4)."""
_RIGHT, _SHARED = 0.75, 0.5
"""Where nothing has run: the share of right answers, and the correlation of two methods' answers to a question."""


def sensitivity_line(target: AnyTarget, records: Mapping[str, Record]) -> str:
    """The smallest difference of two methods on one column that the seeds find with 80 % power, and the seeds that half
    a point needs; "" for what is no table of methods, or whose test rows are not known."""
    if not isinstance(target, Table):
        return ""
    spread, source = _spread(target, records)
    if spread is None:
        return ""
    n, needed = len(target.seeds), seeds_needed(_WANTED, spread)
    least = smallest_difference(spread, n) if n > 1 else math.inf
    if least <= 100:
        seen = f"smallest difference seen on a column with {n} seeds: {least:.1f} points"
    else:
        seen = f"{'a single seed shows' if n == 1 else f'{n} seeds show'} no difference of methods"
    return f"  {seen} (80 % power, p 0.05); {_WANTED:g} points would need {needed:,} seeds ({source})"


def _spread(table: Table, records: Mapping[str, Record]) -> tuple[float | None, str]:
    """Standard deviation in points of one seed's difference: of the runs that are there, pooled over the methods beside
    the first and the columns; else the binomial one of the test rows."""
    reported, first = report(table, records), table.file.search.first
    variances = []
    for column in table.columns:
        metric = table.book.metric(column)
        found = {
            m: e.values(lambda r, metric=metric: float(r.metrics["test"][metric]))  # type: ignore[misc]
            for m in table.methods
            if (e := reported[m, column]).complete
        }
        base = found.pop(first, None)
        if base is None or base.n < 2:
            continue
        for other in found.values():
            if other is not None:
                gaps = [100 * (a - b) for a, b in zip(other.values, base.values, strict=True)]
                mean = math.fsum(gaps) / len(gaps)
                variances.append(math.fsum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1))
    if variances and (pooled := math.sqrt(math.fsum(variances) / len(variances))):
        return pooled, f"a seed's difference spreads {pooled:.1f} points in {len(variances)} pairs that are there"
    rows = [_rows(table, column) for column in table.columns]
    known = [n for n in rows if n]
    if not known:
        return None, ""
    variance = 2 * _RIGHT * (1 - _RIGHT) * (1 - _SHARED) * math.fsum(1 / n for n in known) / len(known)
    return 100 * math.sqrt(variance), (
        f"guessed from at most {max(known):,} test rows, {100 * _RIGHT:g} % right, correlation {_SHARED:g}; the seeds' "
        "own noise comes on top"
    )


def _rows(table: Table, column: str) -> int | None:
    """Test rows of a column, None where the data decide."""
    task = table.spec(table.methods[0], column).task
    return getattr(task, "num_test", None)

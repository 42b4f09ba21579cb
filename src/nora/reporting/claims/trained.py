"""Claims on trained models: paired scores and losses, runs that diverge, singular values, what no record can say."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from nora.files import Json
from nora.reporting import labels
from nora.reporting.claims.evidence import DIFFERS, HOLDS, NOISE, PRINTED, Evidence, Outcome, takes
from nora.reporting.document import Block, Entry, Line
from nora.reporting.inference import Comparison, compare, mcnemar, seeds_needed, within
from nora.reporting.layouts import methods_by_tasks, models_by_sets, subject_losses
from nora.reporting.reported import Reported, ranked
from nora.store.record import Record
from nora.tables.methods import Table
from nora.tables.printed import printed_grid
from nora.tables.subjects import Subjects
from nora.tasks.metrics import token_f1

_NORMAL, _NORMAL_POWER = 1.959964, 0.841621  # the 0.975 and the 0.8 quantile


def scores(
    evidence: Evidence,
    scale: str,
    *,
    table: str,
    ours: str,
    theirs: str,
    printed: float | None,
    columns: Mapping[str, list[str]] | None = None,
    questions: Sequence[int] = (),
) -> Outcome:
    """Ours minus theirs in points, averaged over the columns that both have whole, seed by seed and item by item."""
    if scale == PRINTED:
        return _printed_scores(table, ours, theirs, (columns or {}).get("paper", [None])[0], questions)
    target = evidence.target(table, scale)
    assert isinstance(target, Table)
    wanted = tuple((columns or {}).get(scale, target.columns))
    reported = evidence.reported(target)
    whole = [c for c in wanted if reported[ours, c].complete and reported[theirs, c].complete]
    if not whole:
        return Outcome(notes=(takes(evidence, target, (ours, theirs), wanted, printed),))
    pairs = [(reported[ours, c].records, reported[theirs, c].records, target.book.metric(c)) for c in whole]
    means, items = [], []
    for seed in range(len(target.seeds)):
        own = [(a[seed], b[seed], m) for a, b, m in pairs]
        gaps = [_score(a, m) - _score(b, m) for a, b, m in own if a is not None and b is not None]
        means.append(100 * math.fsum(gaps) / len(gaps))
        items.append([one for a, b, _ in own if a is not None and b is not None for one in _item_gaps(a, b)])
    chance = [c for c in whole if _at_chance(target, reported, c)]
    notes = []
    if len(whole) < len(wanted):
        names = ", ".join(labels.column(target.file.axis, c) for c in whole)
        notes.append(f"{len(whole)} of {len(wanted)} columns: {names}")
    if chance:
        notes.append("at chance" if len(chance) == len(whole) else f"{len(chance)} of {len(whole)} columns at chance")
    found = _single(means[0], items[0]) if len(means) == 1 else compare(means, items if all(items) else ())
    if len(means) == 1:
        notes.append("a single run each: the interval is over the questions alone")
    runs = [i for c in whole for m in (ours, theirs) for i in reported[m, c].ids]
    return _compared(found, "points", runs, chance=len(chance) == len(whole), notes=(*notes, *_seeds(found, printed)))


def _compared(
    found: Comparison, unit: str, runs: Iterable[str], notes: Sequence[str], *, chance: bool = False
) -> Outcome:
    rows = f" × {found.items // found.seeds:,} answers" if found.items else ""
    seeds = f"{found.seeds} seed{'s' if found.seeds > 1 else ''}"
    return Outcome(
        "",
        found.effect,
        found.low,
        found.high,
        unit,
        seeds + rows,
        found.visible,
        found.p,
        chance,
        tuple(dict.fromkeys(runs)),
        tuple(notes),
    )


def _seeds(found: Comparison, printed: float | None) -> tuple[str, ...]:
    """How many seeds would show the paper's number, where these do not."""
    if not printed or found.seeds < 2 or found.visible <= abs(printed):
        return ()
    return (f"{printed:+g} would need {seeds_needed(printed, found.spread):,} seeds",)


def _single(effect: float, items: Sequence[Sequence[float]]) -> Comparison:
    """Two runs: the interval of their items alone, McNemar's p."""
    error = math.sqrt(within([items])) if items else math.inf
    half = _NORMAL * error
    gaps = [gap for one in items for gap in one]
    p = mcnemar([gap > 0 for gap in gaps], [gap < 0 for gap in gaps]) if gaps else 1.0
    visible = (_NORMAL + _NORMAL_POWER) * error if error else math.inf
    return Comparison(effect, effect - half, effect + half, p, 1, len(gaps), math.nan, visible)


def _score(record: Record, metric: str) -> float:
    return float(record.metrics["test"][metric])


def _item_gaps(ours: Record, theirs: Record) -> list[list[float]]:
    """Per set the differences of the items' scores in points; [] unless both runs answered the same questions."""
    found = [
        _item_scores(r.folder / r.result["files"]["predictions"]["name"]) if r.folder else () for r in (ours, theirs)
    ]
    a, b = found
    if not a or [key for key, _ in a] != [key for key, _ in b]:
        return []
    sets: dict[str, list[float]] = {}
    for (key, x), (_, y) in zip(a, b, strict=True):
        sets.setdefault(key.split("\n")[0], []).append(100 * (x - y))
    return list(sets.values())


@cache
def _item_scores(path: Path) -> tuple[tuple[str, float], ...]:
    """(set and right answer, score) of every stored prediction; () where the file is not there."""
    if not path.is_file():
        return ()
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    return tuple(_item(row) for row in rows)


def _item(row: Json) -> tuple[str, float]:
    if "correct" in row:
        return f"\n{row['correct']}", float(row["prediction"] in row["correct"])
    if "references" in row:
        return f"\n{row['references']}", token_f1(row["prediction"], row["references"])
    return f"{row['set']}\n{row['answer']}", float(row["prediction"] == row["answer"])


def _at_chance(table: Table, reported: Mapping[tuple[str, str], Reported], column: str) -> bool:
    metric = table.book.metric(column)
    found = {m: reported[m, column].values(lambda r: _score(r, metric)) for m in table.methods}
    if table.file.layout == "models_by_sets":
        return models_by_sets.at_chance(reported[table.file.search.first, column], list(found.values()))
    return methods_by_tasks.at_chance(table, reported, column, found)


def _printed_scores(table: str, ours: str, theirs: str, model: str | None, questions: Sequence[int]) -> Outcome:
    """The paper's means with the noise it prints: spreads over 5 seeds, else that of the questions, not paired."""
    grid = printed_grid(table, model)
    pairs = [(a, grid[theirs, c]) for (row, c), a in grid.items() if row == ours and c != "avg" and (theirs, c) in grid]
    effect = math.fsum(a.mean - b.mean for a, b in pairs) / len(pairs)
    if questions:
        variances = [v.mean * (100 - v.mean) / n for pair, n in zip(pairs, questions, strict=True) for v in pair]
        n, note, freedom = f"{sum(questions):,} questions", "single runs, not paired; seeds' noise is not in it", 1e9
    else:
        spreads = [v.std for pair in pairs for v in pair]
        variances = [s**2 / 5 for s in spreads if s is not None]
        lost = spreads.count(None)
        n, freedom = "5 seeds", 8.0
        note = "not paired" + (f"; {lost} of {len(spreads)} spreads cannot be read in the scan" if lost else "")
    quoted = "; LoRA's row is another paper's" if any(v.quoted for pair in pairs for v in pair) else ""
    from scipy.special import stdtr, stdtrit

    error = math.sqrt(math.fsum(variances)) / len(pairs)
    half = float(stdtrit(freedom, 0.975)) * error
    visible = (float(stdtrit(freedom, 0.975)) + float(stdtrit(freedom, 0.8))) * error
    p = float(2 * stdtr(freedom, -abs(effect) / error))
    return Outcome("", effect, effect - half, effect + half, "points", n, visible, p, notes=(note + quoted,))


def losses(evidence: Evidence, scale: str, *, table: str, ours: str, theirs: str, printed: float | None) -> Outcome:
    """By how many percent our training loss is the smaller, seed by seed on the same draws (Table 3)."""
    if scale == PRINTED:
        return _printed_losses(ours, theirs)
    target = evidence.target(table, scale)
    assert isinstance(target, Subjects)
    cells = target.cells(evidence.records)
    found = subject_losses.finished(cells, evidence.records)
    pairs = [(a, b) for a, b in zip(found[ours], found[theirs], strict=True) if a is not None and b is not None]
    if len(pairs) < len(found[ours]):
        return Outcome(unit="%", notes=(takes(evidence, target, (ours, theirs), (), printed),))
    made = compare([100 * (1 - a.metrics["loss"]["mean"] / b.metrics["loss"]["mean"]) for a, b in pairs])
    return _compared(made, "%", (r.id for pair in pairs for r in pair), _seeds(made, printed))


def _printed_losses(ours: str, theirs: str) -> Outcome:
    a, b = (subject_losses.printed()["rows"][method] for method in (ours, theirs))
    step = 0.0005  # three digits are printed
    share, low, high = (100 * (1 - (a["mean"] + k * step) / (b["mean"] - k * step)) for k in (0, 1, -1))
    spread = math.hypot(a["std"], b["std"])
    return Outcome(
        NOISE,
        share,
        unit="%",
        n="not said",
        notes=(
            f"the printed digits leave {low:.2f} to {high:.2f} %; the difference is "
            f"{(b['mean'] - a['mean']) / spread:.1f} of the printed spreads, and over how many runs they are is not "
            "said",
        ),
    )


def diverged(evidence: Evidence, scale: str, *, table: str, method: str, columns: Mapping[str, list[str]]) -> Outcome:
    """The share of a method's runs that end with a loss or gradient that is not finite, beside the other methods'."""
    from scipy.stats import binomtest

    target = evidence.target(table, scale)
    assert isinstance(target, Table)
    own = replace(target, columns=tuple(columns[scale]))
    ended = [c for c in own.cells(evidence.records) if c.id in evidence.records]
    states = {m: [evidence.records[str(c.id)].status for c in ended if c.row == m] for m in target.methods}
    if not states[method]:
        return Outcome(unit="% of runs", notes=(takes(evidence, target, target.methods, columns[scale]),))
    k, n = states[method].count("diverged"), len(states[method])
    others = [s for m, found in states.items() if m != method for s in found]
    interval = binomtest(k, n).proportion_ci()
    verdict = HOLDS if k and "diverged" not in others else DIFFERS if interval.high < 0.5 else NOISE
    return Outcome(
        verdict,
        100 * k / n,
        100 * interval.low,
        100 * interval.high,
        "% of runs",
        f"{n} run{'s' if n > 1 else ''}",
        100 * (1 - 0.2 ** (1 / n)),
        runs=tuple(str(c.id) for c in ended),
        notes=(f"of the other methods' runs {others.count('diverged')} of {len(others)}",),
    )


def spectrum(evidence: Evidence, scale: str, *, table: str, method: str) -> Outcome:
    """Spearman's correlation of a singular value's rank with how often it is among those that move most, over the
    tasks; positive: the larger the value, the more often."""
    from scipy.stats import spearmanr

    target = evidence.target(table, scale)
    assert isinstance(target, Table)
    reported = evidence.reported(target)
    whole = [c for c in target.columns if reported[method, c].complete]
    if not whole:
        return Outcome(unit="Spearman's ρ", notes=(takes(evidence, target, (method,), target.columns),))
    means = []
    for seed in range(len(target.seeds)):
        counts = [
            r.metrics["spectrum"]["counts"] for c in whole if (r := reported[method, c].records[seed]) is not None
        ]
        means.append(sum(-float(spearmanr(range(len(own)), own).statistic) for own in counts) / len(counts))
    notes = (f"{len(whole)} of {len(target.columns)} tasks",) if len(whole) < len(target.columns) else ()
    return _compared(compare(means), "Spearman's ρ", (i for c in whole for i in reported[method, c].ids), notes)


def ranks(evidence: Evidence, table: str) -> list[Block]:
    """The methods' mean ranks over the tasks of a table at each scale where two tasks or more are whole for all of
    them: two ranks that are further apart than the critical difference differ at 5 %."""
    columns, found = [], []
    for scale in ("mini", "small", "paper"):
        target = evidence.target(table, scale)
        if not isinstance(target, Table):
            continue
        outcome = ranked(target, evidence.reported(target))
        if outcome is not None:
            columns.append(f"{scale}, {len(outcome[0])} tasks")
            found.append(outcome[1])
    if not found:
        return []
    lines = [Line(labels.method(m), tuple(Entry(f"{r.ranks[m]:.2f}") for r in found)) for m in found[0].ranks]
    lines.append(Line("critical difference (Nemenyi)", tuple(Entry(f"{r.critical:.2f}") for r in found), True))
    lines.append(Line("p that all rank equally (Friedman)", tuple(Entry(f"{r.p:.2g}") for r in found)))
    heading = f"{labels.heading(table, table).split(' – ')[0]}: mean rank over the tasks, 1 is best"
    return [Block(heading, tuple(columns), tuple(lines))]


def opened(evidence: Evidence, scale: str, *, what: str, table: str = "", bench: str = "") -> Outcome:
    """What no record can say, with what would; ``bench``: a benchmark, whose time on the CPU is a bound."""
    notes = [f"takes {what}"]
    if table:
        target = evidence.target(table, scale)
        assert target is not None
        notes.append(takes(evidence, target, tuple(getattr(target, "methods", ())), ()))
    content = evidence.json(f"bench/{bench}.json") if bench else None
    if content is not None:
        hours = content["result"]["rounds"] * sum(row["ms"] for row in content["result"]["rows"]) / 3.6e6
        notes.append(f"{content['result']['rounds']} rounds, at most the {hours:.2g} hours of the CPU")
    return Outcome(unit="", notes=tuple(notes))

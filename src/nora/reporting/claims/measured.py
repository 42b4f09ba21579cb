"""Claims on factorisation, cost and deployment: read from what the repository has computed, nothing is run again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from nora.files import Json
from nora.reporting.claims.evidence import DIFFERS, HOLDS, NOISE, NOT_RUN, Evidence, Outcome
from nora.reporting.inference import compare
from nora.reporting.layouts.deployment import EQUAL, worst
from nora.reporting.layouts.rates import counts_of
from nora.reporting.layouts.rates import shape as shape_of
from nora.reporting.ledger import mathematics
from nora.reporting.statistics import Slope, slope_in_digits, slope_in_doublings
from nora.store.record import Record
from nora.tables.cell import Cell
from nora.tables.panels import Panels, by_curve

_LEDGER = "theory.json"


def _lacking(what: str) -> Outcome:
    return Outcome(NOT_RUN, unit="", notes=(f"takes {what}",))


def _runs(cells: Iterable[Cell[Json]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(cell.id) for cell in cells))


def _done(evidence: Evidence, cells: Sequence[Cell[Json]]) -> list[Record] | None:
    """The cells' records; None unless all are there and done."""
    found = [evidence.records.get(str(cell.id)) for cell in cells]
    done = [record for record in found if record is not None and record.status == "done"]
    return done if done and len(done) == len(cells) else None


# The ledger of the theorems


def ledger(evidence: Evidence, scale: str, *, row: str) -> Outcome:
    """A row of results/theory.json: *differs* where the statement as printed is refuted or needs a condition."""
    content = evidence.json(_LEDGER)
    found = next((r for r in content["rows"] if r["id"] == row), None) if content else None
    if found is None:
        return _lacking(f"`nora theory --only {row!r}`")
    held = found["verdict"] in ("holds", "holds with frequency")
    remark = found["condition"] or found["counterexample"] if not held else ""
    notes = [f"ledger, {row}: {found['verdict']}"] + ([mathematics(remark)] if remark else [])
    n = f"{found['instances']:,} drawn + {found['searched']:,} searched"
    if found["frequency"] is not None:
        return _frequency(round(found["frequency"] * found["instances"]), found["instances"], HOLDS, n, notes)
    return Outcome(
        HOLDS if held else DIFFERS,
        found["worst"],
        unit=f"at worst, limit {found['limit']:.3g}",
        n=n,
        notes=tuple(notes),
    )


def _frequency(k: int, total: int, verdict: str, n: str, notes: Sequence[str], runs: tuple[str, ...] = ()) -> Outcome:
    """A share with its exact (Clopper and Pearson) interval."""
    from scipy.stats import binomtest

    interval = binomtest(k, total).proportion_ci()
    return Outcome(
        verdict,
        100 * k / total,
        100 * interval.low,
        100 * interval.high,
        "% of cases",
        n,
        runs=runs,
        notes=tuple(notes),
    )


# Curves of factorisations


def _panel(evidence: Evidence, table: str, panel: str, curves: str = "") -> tuple[Panels, list[Cell[Json]]]:
    target = evidence.target(table)
    assert isinstance(target, Panels)
    return target, [c for c in target.cells(evidence.records) if c.column == panel and c.row.startswith(curves)]


def rate(evidence: Evidence, scale: str, *, panel: str, shape: str) -> Outcome:
    """The shape of Table 1's counts in a panel, as the table itself decides it, and its slope at the largest κ."""
    target, cells = _panel(evidence, "table1", panel)
    if _done(evidence, cells) is None:
        return _lacking("`nora launch table1`")
    counts = counts_of(by_curve(evidence.records, cells), panel)
    found = shape_of(counts)
    hardest = [c for c in counts if c.kappa == max(k.kappa for k in counts)]
    verdict, n = HOLDS if found == shape else DIFFERS, f"{len({c.seed for c in counts})} seeds, κ from 2 to 100"
    if shape == "one step":
        most = max(c.iterations if c.iterations is not None else math.inf for c in counts)
        return Outcome(verdict, most, unit="iterations at most", n=n, runs=_runs(cells), notes=(f"measured: {found}",))
    slope: Slope = slope_in_doublings(hardest) if shape == "quadratic" else slope_in_digits(hardest)
    unit = f"iterations per {'doubling of the digits' if shape == 'quadratic' else 'digit'}"
    return Outcome(
        verdict,
        slope.value,
        slope.low,
        slope.high,
        unit,
        n,
        runs=_runs(cells),
        notes=(f"measured: {found}, the slope at the largest κ",),
    )


def _traces(evidence: Evidence, cells: Sequence[Cell[Json]]) -> dict[int, dict[str, list[float]]] | None:
    """Seed → curve → error per iteration; None unless every run is there."""
    if _done(evidence, cells) is None:
        return None
    found: dict[int, dict[str, list[float]]] = {}
    for cell in cells:
        trace = evidence.records[str(cell.id)].metrics["trace"]["error"]
        found.setdefault(cell.seed, {})[cell.row] = [math.inf if v is None else float(v) for v in trace]
    return found


def insensitive(
    evidence: Evidence, scale: str, *, figure: str, panel: str, curves: str, below: float, against: Sequence[str]
) -> Outcome:
    """The iterations to an error with the slowest of a figure's values of ξ, over those of another curve (its panel and
    label), seed by seed: *holds* where the interval stays below 1, so that no value loses what the start gains."""
    _, cells = _panel(evidence, figure, panel, curves)
    _, others = _panel(evidence, figure, *against)
    traces, theirs = _traces(evidence, cells), _traces(evidence, others)
    if traces is None or theirs is None:
        return _lacking(f"`nora launch {figure}`")
    steps = {seed: [_first(errors, below) for errors in own.values()] for seed, own in traces.items()}
    n, runs = f"{len(steps)} seeds, {len(cells) // len(steps)} values of ξ", _runs([*cells, *others])
    reached = [step for own in steps.values() for step in own if step is not None]
    bases = {seed: _first(own[against[1]], below) for seed, own in theirs.items()}
    if len(reached) < len(cells) or None in bases.values():
        return Outcome(DIFFERS, unit="", n=n, runs=runs, notes=(f"some never fall below {below:g}",))
    found = compare([max(own) / bases[seed] for seed, own in steps.items()])  # type: ignore[type-var, operator]
    verdict = HOLDS if found.high < 1 else DIFFERS if found.low > 1 else NOISE
    note = f"against {against[1]}; {min(reached)} to {max(reached)} iterations to {below:g} over ξ and seeds"
    return Outcome(
        verdict, found.effect, found.low, found.high, "of the other start's iterations", n, runs=runs, notes=(note,)
    )


def _first(errors: Sequence[float], below: float) -> int | None:
    return next((i for i, error in enumerate(errors) if error < below), None)


def tail(
    evidence: Evidence,
    scale: str,
    *,
    figure: str,
    panel: str,
    curves: str,
    ratio: float,
    within: float,
    first: int,
    floor: float,
) -> Outcome:
    """By what the error shrinks in an iteration from the ``first`` on, above a floor of rounding: near a constant for
    a linear rate (1 - η by the residual space), to 0 for a quadratic one."""
    _, cells = _panel(evidence, figure, panel, curves)
    traces = _traces(evidence, cells)
    if traces is None:
        return _lacking(f"`nora launch {figure}`")
    means, ends = [], []
    for own in traces.values():
        steps = [[b / a for a, b in pairwise(errors[first:]) if b > floor] for errors in own.values()]
        means.append(math.fsum(sum(one) / len(one) for one in steps) / len(steps))
        ends += [one[-1] for one in steps]
    found = compare(means)
    inside = abs(found.low - ratio) <= within and abs(found.high - ratio) <= within and min(ends) > ratio - 2 * within
    return Outcome(
        HOLDS if inside else DIFFERS,
        found.effect,
        found.low,
        found.high,
        "of the error left per iteration",
        f"{len(means)} seeds, {len(cells) // len(means)} perturbations",
        runs=_runs(cells),
        notes=(f"1 − η = {ratio:g}, the last ratio of each is {min(ends):.3f} or more",),
    )


def needs_stopping(evidence: Evidence, scale: str, *, panels: Sequence[str]) -> Outcome:
    """How many runs that go on without a stop fail to reach Table 1's smallest error."""
    found = [_panel(evidence, "table1", panel) for panel in panels]
    cells = [cell for _, own in found for cell in own]
    if _done(evidence, cells) is None:
        return _lacking("`nora launch table1`")
    runs = by_curve(evidence.records, cells)
    counts = [c for panel in panels for c in counts_of(runs, panel)]
    finest = min(c.epsilon for c in counts)
    ended = [c.iterations is not None for c in counts if c.epsilon == finest]
    failed = ended.count(False)
    verdict = DIFFERS if not failed else HOLDS if failed == len(ended) else NOISE
    note = f"{ended.count(True)} of {len(ended)} runs reach a relative error of {finest:g} without being stopped"
    return _frequency(failed, len(ended), verdict, f"{len(ended)} runs, κ from 2 to 100", [note], _runs(cells))


def never_rises(
    evidence: Evidence, scale: str, *, figure: str, panel: str, curves: str, floor: float, bound: float
) -> Outcome:
    """The largest error after the first below ``floor``: going on costs nothing where it stays below the bound."""
    _, cells = _panel(evidence, figure, panel, curves)
    traces = _traces(evidence, cells)
    if traces is None:
        return _lacking(f"`nora launch {figure}`")
    later, n = [], f"{len(traces)} seeds"
    for own in traces.values():
        for errors in own.values():
            at = _first(errors, floor)
            later.append(math.inf if at is None else max(errors[at:]))
    held = max(later) <= bound * floor
    return Outcome(
        HOLDS if held else DIFFERS, max(later), unit=f"error at most, once below {floor:g}", n=n, runs=_runs(cells)
    )


# Benchmarks and deployment


def _spread(ratios: Sequence[float], unit: str, n: str, notes: Sequence[str]) -> Outcome:
    """Ratios of time over cases: all above 1, all below, or both; low and high are the smallest and the largest."""
    low, high = min(ratios), max(ratios)
    middle = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
    verdict = HOLDS if low > 1 else DIFFERS if high < 1 else NOISE
    return Outcome(verdict, middle, low, high, unit, n, notes=(*notes, "geometric mean and range over the cases"))


def cheaper_start(evidence: Evidence, scale: str, *, ours: str, others: Sequence[str]) -> Outcome:
    """Milliseconds of the others over ours in results/bench/init.json."""
    content = evidence.json("bench/init.json")
    if content is None:
        return _lacking("`nora bench init`")
    cases = [case["methods"] for case in content["result"]["cases"]]
    ratios = [c[o]["ms"] / c[ours]["ms"] for c in cases for o in others if o in c and ours in c]
    return _spread(ratios, "times our start's time", f"{len(ratios)} cases, {content['device']}", ())


def faster_factorisation(evidence: Evidence, scale: str, *, other: str) -> Outcome:
    """Milliseconds of another factorisation over ours in results/bench/factorization.json."""
    content = evidence.json("bench/factorization.json")
    if content is None:
        return _lacking("`nora bench factorization`")
    rows: list[Mapping[str, Json]] = [
        r for r in content["result"]["rows"] if r["method"] == other and r["equally_accurate"]
    ]
    where = ", ".join(sorted({r["device"] for r in rows}))
    return _spread([r["ratio"] for r in rows], "times our time", f"{len(rows)} cases, {where}", ())


def deployed(evidence: Evidence, scale: str, *, inits: Sequence[str], loads: bool) -> Outcome:
    """The largest difference of an output from the trained model's own, for adapters saved by default and loaded onto
    an untouched base beside a LoRA (the deployment table's figures)."""
    target = evidence.target("deployment")
    assert target is not None
    cells = [cell for cell in target.cells(evidence.records) if cell.row in inits]
    records = _done(evidence, cells)
    if records is None:
        return _lacking("`nora launch deployment`")
    paths = [(host, key) for host in ("text", "diffusion") for key in ("alone", "beside")]
    by_init = {i: [r for r, c in zip(records, cells, strict=True) if c.row == i] for i in inits}
    found = {(i, *path): worst(own, path[0], "stock", path[1]) for i, own in by_init.items() for path in paths}
    equal = {key: isinstance(v, float | int) and v <= EQUAL for key, v in found.items()}
    refused = sorted({f"{i} on the {host} model" for (i, host, _), v in found.items() if isinstance(v, str)})
    numbers = [float(v) for v in found.values() if isinstance(v, float | int)]
    held = all(equal.values()) if loads else not any(e for (_, _, key), e in equal.items() if key == "beside")
    seeds = len({c.seed for c in cells})
    notes = (f"equal: {EQUAL:g} or less", *([f"stock loading refuses {', '.join(refused)}"] if refused else []))
    return Outcome(
        HOLDS if held else DIFFERS,
        max(numbers),
        unit="largest change of an output",
        n=f"{len(inits)} starts, {seeds} seeds, PEFT and diffusers",
        runs=_runs(cells),
        notes=notes,
    )

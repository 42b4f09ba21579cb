"""Table 1: the printed complexities and, beside them, iterations counted and slopes fitted."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files

import yaml

from nora.files import Json
from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.reporting.reported import gap, states_of
from nora.reporting.statistics import Count, Slope, slope_in_digits, slope_in_doublings, slope_in_kappa
from nora.store.record import Record
from nora.tables.panels import Panels, by_curve

_MEASURED_FROM = 3  # columns: algorithm, start, printed, then what was measured


def counts_of(runs: Mapping[tuple[str, str], Mapping[int, Record | None]], panel: str) -> list[Count]:
    found = []
    for (name, _), seeds in runs.items():
        if name != panel:
            continue
        for seed, record in seeds.items():
            if record is not None:
                kappa = record.spec["problem"]["kappa"]
                found += [Count(kappa, eps, seed, steps) for eps, steps in record.metrics["first_below"]]
    return found


def _median(counts: Sequence[Count], kappa: float, epsilon: float, budget: int) -> str:
    steps = [c.iterations for c in counts if c.kappa == kappa and c.epsilon == epsilon]
    value = statistics.median(s if s is not None else float("inf") for s in steps)
    return f"> {budget}" if value == float("inf") else f"{value:g}"


def _interval(slope: Slope, digits: int = 1) -> Entry:
    if not slope.determined:
        return Entry("–")
    value, low, high = (f"{round(number, digits) + 0.0:.{digits}f}" for number in (slope.value, slope.low, slope.high))
    return Entry(value, detail=f"{low} to {high}")


def shape(counts: Sequence[Count]) -> str:
    """What the counts look like in ε: one step, quadratic (log log) or linear (log)."""
    here = [c for c in counts if c.kappa == max(k.kappa for k in counts if k.iterations is not None)]
    finest = {c.epsilon: c.iterations for c in here}
    if all(c.iterations is not None and c.iterations <= 1 for c in counts):
        return "one step"
    if any(steps is None for steps in finest.values()):
        return "over budget"
    linear, quadratic = slope_in_digits(here), slope_in_doublings(here)
    if not linear.determined or linear.r2 != linear.r2:
        return "–"
    return "quadratic" if quadratic.r2 > linear.r2 and linear.value < 1 else "linear"


def build(target: Panels, records: Mapping[str, Record]) -> Document:
    """Printed rows in the paper's order with their measurement, then what is measured beyond them."""
    printed = yaml.safe_load(files("nora.tables").joinpath("paper", "table1.yaml").read_text(encoding="utf-8"))
    cells = target.cells(records)
    runs = by_curve(records, cells)
    shared = target.file.shared
    budget, kappas = shared["protocol.iterations"], (10.0, 100.0)
    lines: list[Line] = []
    rows: list[tuple[object, ...]] = []
    setting = None
    for row in [*printed["rows"], *printed["beyond"]]:
        beyond = "rate" not in row
        own = [cell for cell in cells if cell.column == row.get("measured")]
        absent = gap(states_of(own, records)) if own else "not measured"
        counts = [] if absent else counts_of(runs, row["measured"])
        made = _entries(row, counts, absent, beyond, kappas, min(shared["protocol.epsilons"]), budget)
        ids = tuple(str(cell.id) for cell in own)
        entries = tuple(replace(e, runs=ids if i >= _MEASURED_FROM else ()) for i, e in enumerate(made))
        rule = bool(lines) and (row["setting"] != setting or (beyond and not lines[-1].label.startswith("*")))
        label = f"{'* ' if beyond else ''}{row['setting']} {row['regime']}"
        lines.append(Line(label, entries, rule))
        setting = row["setting"]
        rows += [
            (
                row["setting"],
                row["regime"],
                row["algorithm"],
                row["start"],
                c.kappa,
                c.epsilon,
                c.seed,
                c.iterations or "",
            )
            for c in counts
        ]
    return Document(
        name=target.name,
        title=labels.heading(target.name, target.file.title),
        banner="",
        blocks=(
            Block(
                "",
                (
                    "algorithm",
                    "start",
                    "printed",
                    "to 1e-10, κ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}10",
                    "to 1e-10, κ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}100",
                    "exponent of κ",
                    "per digit",
                    "per doubling",
                    "shape",
                ),
                tuple(lines),
            ),
        ),
        notes=(
            "EP, OP, UP: exactly, over- and under-parametrised, the rank of the factors equals, exceeds, is below A's.",
            *target.file.caption,
            "To 1e-10: median iterations over seeds. Exponent of κ: fitted a in iterations ~ κ^a at ε = 1e-10, "
            "with its 95 % interval; the printed rates are upper bounds, so a smaller one agrees. Per digit: "
            "iterations per factor 10 in ε at κ = 10; per doubling: iterations per doubling of its digits "
            "(about 1 for a quadratic rate). Shape: in ε, at the largest κ within the budget.",
            "† an exponent the scan of the paper leaves open. ‡ stated for matrix sensing; the run beside it, where "
            "there is one, is the same algorithm on factorisation and does not measure that statement.",
        ),
        csv_header=("setting", "regime", "algorithm", "start", "kappa", "epsilon", "seed", "iterations"),
        csv_rows=tuple(rows),
    )


def _entries(
    row: Mapping[str, Json],
    counts: Sequence[Count],
    absent: str,
    beyond: bool,
    kappas: tuple[float, float],
    epsilon: float,
    budget: int,
) -> list[Entry]:
    marks = ("†" if row.get("doubtful") else "") + ("‡" if row.get("sensing") else "")
    rate = "–" if beyond else row["rate"] + marks
    algorithm = Entry(row["algorithm"], detail="" if beyond else row["reference"])
    head = [algorithm, Entry(row["start"]), Entry(rate)]
    if absent:
        return [*head, Entry(absent), Entry(absent), *[Entry("–")] * 4]
    at_ten = [c for c in counts if c.kappa == kappas[0]]
    return [
        *head,
        *(Entry(_median(counts, kappa, epsilon, budget)) for kappa in kappas),
        _interval(slope_in_kappa(counts), 2),
        _interval(slope_in_digits(at_ten)),
        _interval(slope_in_doublings(at_ten)),
        Entry(shape(counts)),
    ]

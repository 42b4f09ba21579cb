"""Starts on equal terms: methods by tasks with intervals, trials, what each start costs and its sharpness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median

from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.reporting.layouts import methods_by_tasks
from nora.reporting.reported import MISSING, Reported, report
from nora.reporting.statistics import paired_interval
from nora.store.record import Record
from nora.tables.methods import Table


def build(table: Table, records: Mapping[str, Record]) -> Document:
    """The table's document from the records there are."""
    base = methods_by_tasks.build(table, records)
    reported = report(table, records)
    methods = [m for m in (*table.file.rows, *table.file.below_rule) if m in table.methods]
    metric = {task: table.book.metric(task) for task in table.columns}

    def grid(heading: str, cell: Callable[[str, str, Reported], str], named: str) -> Block:
        lines = [
            Line(
                labels.method(method),
                tuple(Entry(cell(method, task, reported[method, task])) for task in table.columns),
                method in table.file.below_rule[:1],
            )
            for method in methods
        ]
        columns = tuple(f"{labels.column(table.file.axis, task)}{named}" for task in table.columns)
        return Block(heading, columns, tuple(lines))

    def interval(method: str, task: str, entry: Reported) -> str:
        read = _test(metric[task])
        own, baseline = entry.values(read), reported[table.file.search.first, task].values(read)
        if own is None or baseline is None:
            return MISSING
        if method == table.file.search.first:
            return "–"
        gap = paired_interval(own.values, baseline.values)
        return f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"

    blocks = (
        *base.blocks,
        grid("Difference from LoRA over the seeds, points, with its 95 % interval", interval, ""),
        grid("Trials per task and seed", lambda m, t, e: str(len(table.file.grid(m, t)["protocol.lr"])), ""),
        grid("Sharpness of the start (top eigenvalue of the loss's Hessian over the adapter)", _sharpness, ""),
        grid("Time of the start, median", _seconds, ", ms"),
    )
    runs = len(table.cells(records))
    return replace(base, blocks=blocks, notes=(*base.notes, f"{runs} runs."))


def _test(name: str) -> Callable[[Record], float]:
    return lambda record: float(record.metrics["test"][name])


def _sharpness(method: str, task: str, entry: Reported) -> str:
    del method, task
    summary = entry.values(lambda record: float(record.metrics["sharpness"]["value"]))
    return MISSING if summary is None else f"{summary.mean:.3g}"


def _seconds(method: str, task: str, entry: Reported) -> str:
    del method, task
    found = [r.run["start_seconds"] for r in entry.records if r is not None and "start_seconds" in r.run]
    return f"{1000 * median(found):.1f}" if found else MISSING

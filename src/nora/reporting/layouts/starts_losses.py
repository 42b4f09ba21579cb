"""Starts on equal terms on a subject of pictures: each at the better of its learning rates, by the loss itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, median

from nora.kinds import DreamboothSpec
from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.reporting.layouts.subject_losses import difference, spread
from nora.reporting.reported import gap, states_of
from nora.reporting.statistics import clear_best, paired_interval, summarize
from nora.store.record import Record
from nora.tables.cell import Cell, format_value
from nora.tables.subjects import Subjects

_Found = tuple[str, list[Record]]
"""The learning rate of a row, and its record per seed."""


def build(table: Subjects, records: Mapping[str, Record]) -> Document:
    """The table's document from the records there are."""
    cells = table.cells(records)
    of_row = {row: [cell for cell in cells if cell.row == row] for row in table.methods}
    found = {row: chosen for row, own in of_row.items() if (chosen := _chosen(own, records)) is not None}
    best = clear_best({row: summarize(_losses(kept)) for row, (_, kept) in found.items()}, lowest=True)
    first = table.methods[0]
    base = _losses(found[first][1]) if first in found else None
    lines = []
    for row, own in of_row.items():
        if row not in found:
            lines.append(Line(labels.method(row), (Entry(gap(states_of(own, records))), *[Entry("–")] * 4)))
            continue
        rate, kept = found[row]
        losses = _losses(kept)
        took = [1000 * float(r.run["start_seconds"]) for r in kept if "start_seconds" in r.run]
        entries = (
            Entry(spread(summarize(losses)), row in best, runs=tuple(r.id for r in kept)),
            Entry(spread(summarize(_losses(kept, "last_100"))), runs=tuple(r.id for r in kept)),
            Entry(difference(paired_interval(losses, base) if base and row != first else None)),
            Entry(f"{rate} of {len(own) // len(table.seeds)}"),
            Entry(f"{median(took):.1f}" if took else "–"),
        )
        lines.append(Line(labels.method(row), entries))
    columns = ("all steps", "last 100 steps", f"minus {labels.method(first)}, all steps", "learning rate", "start, ms")
    return Document(
        name=f"{table.name}.{table.scale}",
        title=f"{table.file.title}: {labels.task(table.subject)}",
        banner=labels.BANNERS[table.scale],
        blocks=(Block("Average training loss", columns, tuple(lines)),),
        notes=(
            f"Loss: {labels.over_seeds(table.seeds)}, the same draws for every row. Differences: within a seed "
            f"[95 % t interval]. {labels.BOLD}",
            "Each row at the learning rate of its lower average loss: chosen, for all alike, by what is reported.",
            *table.file.caption,
            *_of_its_size(table, found),
            f"{len(cells)} runs.",
        ),
        csv_header=("table", "scale", "row", "seed", "lr", "mean_loss", "last_100", "id", "state"),
        csv_rows=tuple(_row(cell, records) for cell in cells),
    )


def _of_its_size(table: Subjects, found: Mapping[str, _Found]) -> list[str]:
    """What remains of a start's difference from the first row once its size is that row's."""
    first, lines = table.methods[0], []
    for row in table.methods:
        method, settings = table.file.choice(row)
        if "method.match" in settings and {row, method, first} <= set(found):
            own, matched = (
                difference(paired_interval(_losses(found[name][1]), _losses(found[first][1]))) for name in (method, row)
            )
            lines.append(
                f"{labels.method(method)} differs from {labels.method(first)} by {own} at its own size, and by "
                f"{matched} at {labels.method(first)}'s."
            )
    return lines


def _losses(kept: Sequence[Record], measure: str = "mean") -> list[float]:
    return [float(record.metrics["loss"][measure]) for record in kept]


def _chosen(cells: Sequence[Cell[DreamboothSpec]], records: Mapping[str, Record]) -> _Found | None:
    """The rate of the lower mean over the seeds; None while a run is missing. One at which a seed diverged was tried,
    and is no choice."""
    by_rate: dict[str, list[Record]] = defaultdict(list)
    for cell in cells:
        record = records.get(str(cell.id))
        if record is None:
            return None
        by_rate[format_value(cell.settings["protocol.lr"])].append(record)
    whole = {rate: kept for rate, kept in by_rate.items() if all(record.status == "done" for record in kept)}
    return min(whole.items(), key=lambda one: mean(_losses(one[1])), default=None)


def _row(cell: Cell[DreamboothSpec], records: Mapping[str, Record]) -> tuple[object, ...]:
    record = records.get(str(cell.id))
    loss = record.metrics["loss"] if record is not None and record.status == "done" else {}
    return (
        cell.table, cell.scale, cell.row, cell.seed, cell.settings["protocol.lr"], loss.get("mean", ""),
        loss.get("last_100", ""), cell.id, states_of((cell,), records)[0],
    )  # fmt: skip

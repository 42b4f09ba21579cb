"""Learning rate against dev score and loss, a pair of axes per start, with the edge that its sharpness predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from nora.reporting import labels
from nora.reporting.figures import BLUE, PAPER_WIDTH, VERMILION, Figure
from nora.reporting.reported import absent, states_of
from nora.store.record import Record
from nora.tables.methods import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class Point:
    """One learning rate of one row, averaged over the seeds; ``loss`` is infinite where a seed diverged."""

    rate: float
    score: float
    loss: float


@dataclass(frozen=True)
class Row:
    """The learning rates of one start on one task, ascending, and its sharpness before the first step."""

    points: tuple[Point, ...]
    sharpness: float

    @property
    def edge(self) -> float:
        """The largest rate up to which the dev loss stays at or below that of the smallest one."""
        usable = [p.rate for p in self.points if p.loss <= self.points[0].loss]
        return max(usable, default=math.nan)


def row_of(by_rate: Mapping[float, Sequence[Record | None]], metric: str) -> Row | None:
    """A start's row from its records by learning rate; None while one is missing."""
    points, sharpness = [], []
    for rate in sorted(by_rate):
        records = [r for r in by_rate[rate] if r is not None]
        if len(records) < len(by_rate[rate]):
            return None
        sharpness += [float(r.metrics["sharpness"]["value"]) for r in records if "sharpness" in r.metrics]
        if all(r.status == "done" for r in records):
            score, loss = (mean(float(r.metrics["dev"][key]) for r in records) for key in (metric, "loss"))
            points.append(Point(rate, score, loss))
        else:
            points.append(Point(rate, math.nan, math.inf))
    return Row(tuple(points), mean(sharpness)) if sharpness else None


def predicted_edge(row: Row, first: Row) -> float:
    """The first row's edge times how much flatter this start is: a stable step is inversely proportional to λ_max."""
    return first.edge * first.sharpness / row.sharpness


def rank_correlation(rows: Sequence[Row]) -> tuple[float, float]:
    """Spearman's ρ of sharpness and edge over the starts, and its two-sided p."""
    from scipy.stats import spearmanr

    found = spearmanr([row.sharpness for row in rows], [row.edge for row in rows])
    return float(found.statistic), float(found.pvalue)


def build(table: Table, records: Mapping[str, Record]) -> Figure:
    """Small axes, one per start; a start without all its runs says so."""
    (column,) = table.columns
    cells = table.cells(records)
    first, metric = table.file.search.first, table.book.metric(column)
    rows: dict[str, Row | None] = {}
    for method in table.methods:
        by_rate: dict[float, list[Record | None]] = {}
        for cell in cells:
            if cell.row == method:
                by_rate.setdefault(float(cell.settings["protocol.lr"]), []).append(records.get(str(cell.id)))
        rows[method] = row_of(by_rate, metric)
    # A run that diverged is what is looked for here, and not a gap.
    tried = ["done" if state == "diverged" else state for state in states_of(cells, records)]
    known = {method: row for method, row in rows.items() if row is not None}
    base = known.get(first)

    def draw(canvas: Canvas) -> None:
        across = min(7, len(rows))
        axes = canvas.subplots(math.ceil(len(rows) / across), across, sharex=True, sharey=True, squeeze=False)
        for ax, (method, row) in zip(axes.flat, rows.items(), strict=False):
            ax.set_title(labels.method(method), fontsize=6)
            if row is None:
                ax.text(0.5, 0.5, "missing", ha="center", va="center", transform=ax.transAxes, fontsize=6)
                continue
            _draw_row(ax, row, base)
        for ax in axes.flat[len(rows) :]:
            ax.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("dev, %", fontsize=6)
        for ax in axes[-1]:
            ax.set_xlabel("learning rate", fontsize=6)

    notes = [
        f"{labels.task(column)}, dev {labels.metric(metric)} (line; grey: {labels.method(first)}), "
        f"{labels.over_seeds(table.seeds)}; × where a seed diverged. {len(cells)} runs, "
        f"{len(cells) // max(len(rows) * len(table.seeds), 1)} learning rates √10 apart for every start.",
        "Dashed: the edge predicted from the sharpness λ (top eigenvalue of the loss's Hessian over the adapter before "
        f"the first step), {labels.method(first)}'s edge · its λ / λ. Solid: the edge found, the largest rate at which "
        "the dev loss is no higher than at the smallest. AdamW and the preconditioned steps scale each direction "
        "themselves: λ knows nothing of that.",
    ]
    if len(known) > 3:
        rho, p = rank_correlation(list(known.values()))
        notes.append(f"Spearman's ρ of λ and the edge found over {len(known)} starts: {rho:.2f} (p = {p:.2g}).")
    return Figure(
        name=f"{table.name}.{table.scale}",
        title=labels.heading(table.name, table.file.title),
        size=(PAPER_WIDTH, 1.25 * math.ceil(len(rows) / 7) + 0.3),
        draw=draw,
        csv_header=("task", "method", "lr", "dev", "dev_loss", "sharpness", "edge", "predicted_edge"),
        csv_rows=tuple(
            (
                column, method, p.rate, p.score, p.loss, row.sharpness, row.edge,
                predicted_edge(row, base) if base else "",
            )
            for method, row in known.items()
            for p in row.points
        ),
        banner=" ".join(filter(None, (labels.BANNERS[table.scale], absent(tried)))),
        notes=tuple(notes),
    )  # fmt: skip


def _draw_row(ax: Axes, row: Row, base: Row | None) -> None:
    ax.set_xscale("log")
    ax.tick_params(labelsize=5)
    rates = [p.rate for p in row.points]
    if base is not None and base is not row:
        ax.plot([p.rate for p in base.points], [100 * p.score for p in base.points], color="#bbbbbb", linewidth=0.8)
        ax.axvline(predicted_edge(row, base), color=VERMILION, linestyle="--", linewidth=0.8)
    ax.plot(rates, [100 * p.score for p in row.points], "o-", color=BLUE, markersize=2, linewidth=1)
    if not math.isnan(row.edge):
        ax.axvline(row.edge, color=VERMILION, linewidth=0.8)
    for point in row.points:
        if math.isinf(point.loss):
            ax.plot(point.rate, 0.02, "x", color="#000000", markersize=3, transform=ax.get_xaxis_transform())

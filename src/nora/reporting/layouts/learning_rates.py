"""Learning rate against dev score, small axes per start, with the best rate that its sharpness predicts."""

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

    @property
    def best(self) -> float:
        """The rate of the highest dev score; of equals the lower loss, then the lower rate."""
        finite = [(-p.score, p.loss, p.rate) for p in self.points if math.isfinite(p.loss)]
        return min(finite)[2] if finite else math.nan


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


def predicted_best(row: Row, first: Row) -> float:
    """The first row's best rate times how much flatter this start is: a stable step is inversely proportional to
    λ_max (arXiv 2602.04998)."""
    return first.best * first.sharpness / row.sharpness


def correlation(rows: Sequence[Row], rates: Sequence[float]) -> str:
    """Spearman's ρ of the sharpness with a rate of each start, and its two-sided p; that all are alike, where so."""
    from scipy.stats import spearmanr

    if len(set(rates)) == 1:
        return f"none, {rates[0]:g} for every start"
    found = spearmanr([row.sharpness for row in rows], rates)
    return f"{float(found.statistic):.2f} (p = {float(found.pvalue):.2g})"


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
            name = labels.method(method)
            ax.set_title(name, fontsize=6 if len(name) < 20 else 5)
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
        "Solid: the best rate found. Dashed: the one predicted from the sharpness λ (top eigenvalue of the loss's "
        f"Hessian over the adapter before the first step), {labels.method(first)}'s best · its λ / λ. AdamW and the "
        "preconditioned steps scale each direction themselves: λ knows nothing of that.",
    ]
    if len(known) > 3:
        whole = list(known.values())
        notes.append(
            f"Over {len(known)} starts, Spearman's ρ of λ with the best rate: "
            f"{correlation(whole, [row.best for row in whole])}; with the largest rate at which the dev loss is no "
            f"higher than at the smallest: {correlation(whole, [row.edge for row in whole])}."
        )
    return Figure(
        name=f"{table.name}.{table.scale}",
        title=labels.heading(table.name, table.file.title),
        size=(PAPER_WIDTH, 1.25 * math.ceil(len(rows) / 7) + 0.3),
        draw=draw,
        csv_header=("task", "method", "lr", "dev", "dev_loss", "sharpness", "best", "predicted_best", "edge"),
        csv_rows=tuple(
            (
                column, method, p.rate, p.score, p.loss, row.sharpness, row.best,
                predicted_best(row, base) if base else "", row.edge,
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
        ax.axvline(predicted_best(row, base), color=VERMILION, linestyle="--", linewidth=0.8)
    ax.plot(rates, [100 * p.score for p in row.points], "o-", color=BLUE, markersize=2, linewidth=1)
    if not math.isnan(row.best):
        ax.axvline(row.best, color=VERMILION, linewidth=0.8)
    for point in row.points:
        if math.isinf(point.loss):
            ax.plot(point.rate, 0.02, "x", color="#000000", markersize=3, transform=ax.get_xaxis_transform())

"""Critical-difference diagram (Demšar 2006, Section 3.2.4): mean ranks over the tasks, bars join what is alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nora.reporting import labels
from nora.reporting.figures import BLACK, PAPER_WIDTH, VERMILION, Figure
from nora.reporting.inference import Ranking
from nora.reporting.reported import absent, ranked, report, states_of
from nora.store.record import Record
from nora.tables.methods import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


def build(table: Table, records: Mapping[str, Record]) -> Figure:
    """One axis of ranks, the best at its left; the tasks that are not whole for every method are left out, by name."""
    outcome = ranked(table, report(table, records))
    whole, ranking = outcome if outcome is not None else ([], None)

    def draw(canvas: Canvas) -> None:
        ax = canvas.subplots()
        ax.set_axis_off()
        if ranking is None:
            ax.text(0.5, 0.5, "missing", ha="center", va="center", transform=ax.transAxes)
        else:
            _draw(ax, ranking)

    return Figure(
        name=f"{table.name}.{table.scale}",
        title=labels.heading(table.name, table.file.title),
        size=(PAPER_WIDTH, 0.4 + 0.26 * len(table.methods)),
        draw=draw,
        csv_header=("method", "mean_rank", "tasks", "critical_difference", "friedman_p"),
        csv_rows=tuple(
            (method, f"{rank:.9g}", len(whole), f"{ranking.critical:.9g}", f"{ranking.p:.9g}")
            for method, rank in ranking.ranks.items()
        ) if ranking is not None else (),
        banner=" ".join(
            filter(None, (labels.BANNERS[table.scale], absent(states_of(table.cells(records), records))))
        ),
        notes=tuple(_notes(table, whole, ranking)),
    )  # fmt: skip


def _notes(table: Table, whole: list[str], ranking: Ranking | None) -> list[str]:
    rest = [labels.task(column) for column in table.columns if column not in whole]
    left_out = f" Not whole for every method, and left out: {', '.join(rest)}." if rest else ""
    if ranking is None:
        return [f"Two tasks with every run of every method are required.{left_out}"]
    all_alike = len(ranking.ranks) in map(len, ranking.alike())
    apart = "no two methods are" if all_alike else "methods without a common bar are"
    return [
        f"Mean rank by the mean test score of the seeds over {len(whole)} tasks "
        f"({', '.join(map(labels.task, whole))}); 1 is best.{left_out}",
        f"Bars join methods within Nemenyi's critical difference of {ranking.critical:.2f} ranks (5 %): {apart} "
        f"further apart. Friedman's test that all rank equally: p = {ranking.p:.2g}.",
    ]


def _draw(ax: Axes, ranking: Ranking) -> None:
    ordered = sorted(ranking.ranks, key=lambda name: ranking.ranks[name])
    k = len(ordered)
    groups = ranking.alike()
    ax.set_xlim(0.2 - 0.25 * k, 1.25 * k + 0.8)  # room for the names at both sides
    top, step = 0.0, 0.6
    ax.hlines(top, 1, k, color=BLACK, linewidth=0.8)
    for rank in range(1, k + 1):
        ax.vlines(rank, top, top + 0.12, color=BLACK, linewidth=0.8)
        ax.text(rank, top + 0.2, str(rank), ha="center", va="bottom", fontsize=7)
    ax.hlines(top + 1.1, 1, 1 + min(ranking.critical, k - 1), color=VERMILION, linewidth=2)
    beyond = " (wider than the axis)" if ranking.critical > k - 1 else ""
    ax.text(1, top + 1.25, f"critical difference {ranking.critical:.2f}{beyond}", fontsize=7, color=VERMILION)
    below = top - 0.3 - 0.22 * len(groups)
    half = (k + 1) // 2
    for i, name in enumerate(ordered):
        left = i < half
        y = below - step * (i if left else k - 1 - i)
        edge, side = (0.9, "right") if left else (k + 0.1, "left")
        ax.plot([ranking.ranks[name], ranking.ranks[name], edge], [top, y, y], color=BLACK, linewidth=0.6)
        label = f"{labels.method(name)}  {ranking.ranks[name]:.2f}"
        ax.text(edge + (-0.08 if left else 0.08), y, label, ha=side, va="center", fontsize=7)
    for i, group in enumerate(groups):
        y = top - 0.2 - 0.22 * i
        ends = [ranking.ranks[group[0]] - 0.05, ranking.ranks[group[-1]] + 0.05]
        ax.plot(ends, [y, y], color=BLACK, linewidth=2.5, solid_capstyle="butt")
    ax.set_ylim(below - step * half, top + 1.7)

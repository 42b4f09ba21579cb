"""Figure 2: how often each singular-value index is among the r that plain LoRA moves most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nora.reporting import labels
from nora.reporting.figures import BLUE, ORANGE, PAPER_WIDTH, Figure
from nora.reporting.reported import report
from nora.store.record import Record
from nora.tables.methods import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


_PER_LINE = 4


def build(table: Table, records: Mapping[str, Record]) -> Figure:
    """One panel per task from the first seed's LoRA run at its chosen settings; a task without one says missing."""
    reported = report(table, records)
    method, seed = table.methods[0], table.seeds[0]
    panels: list[tuple[str, Record | None]] = []
    gaps: dict[str, str] = {}
    for task in table.columns:
        entry = reported[method, task]
        record = entry.records[0] if entry.records else None
        panels.append((task, record if record is not None and record.status == "done" else None))
        gaps[task] = entry.gap() if entry.settings is None else entry.states[0]
    rank = next((int(r.spec["method"]["rank"]) for _, r in panels if r is not None), 0)
    rows = tuple(
        (task, index, count, index <= rank, record.id)
        for task, record in panels
        if record is not None
        for index, count in enumerate(record.metrics["spectrum"]["counts"], start=1)
    )

    def draw(canvas: Canvas) -> None:
        lines = -(-len(panels) // _PER_LINE)
        axes = canvas.subplots(lines, min(_PER_LINE, len(panels)), squeeze=False, sharex=True, sharey=True)
        for ax, (task, record) in zip(axes.flat, panels, strict=False):
            ax.set_title(labels.task(task))
            if record is None:
                ax.text(0.5, 0.5, gaps[task], ha="center", va="center", transform=ax.transAxes)
                continue
            counts = record.metrics["spectrum"]["counts"]
            colours = [ORANGE if i < rank else BLUE for i in range(len(counts))]
            ax.bar(range(1, len(counts) + 1), counts, width=1.0, color=colours, edgecolor="white", linewidth=0.2)
            share = record.metrics["spectrum"]["top_rank_share"]
            ax.text(0.97, 0.92, f"top {rank}: {100 * share:.0f} %", ha="right", transform=ax.transAxes, fontsize=7)
        for ax in list(axes.flat)[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("singular value index")
        for line in axes:
            line[0].set_ylabel("count")

    beyond = {labels.task(t): r.metrics["spectrum"]["beyond"] for t, r in panels if r is not None}
    matrices = {r.metrics["spectrum"]["matrices"] for _, r in panels if r is not None}
    return Figure(
        name=f"{table.name}.{table.scale}",
        title=labels.heading(table.name, table.file.title),
        size=(PAPER_WIDTH, 1.7 * -(-len(panels) // _PER_LINE) + 0.2),
        draw=draw,
        csv_header=("task", "index", "count", "among_top_rank", "id"),
        csv_rows=rows,
        banner=labels.BANNERS[table.scale],
        notes=(
            f"For each of the {', '.join(map(str, sorted(matrices))) or '?'} adapted matrices the r = {rank} indices "
            f"whose sorted singular value changed most after training add one to their count (seed {seed}, float64, "
            "merged with the LoRA scaling). Orange: the r leading indices; blue: the others.",
            "Mass beyond index 64: " + (", ".join(f"{t} {n}" for t, n in beyond.items()) or "no run yet") + ".",
        ),
    )

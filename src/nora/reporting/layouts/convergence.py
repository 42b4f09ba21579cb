"""Convergence figures (1 and 4): error against iteration, one line per start and solver, bands over the seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nora.reporting import labels
from nora.reporting.figures import BLACK, BLUE, GREEN, ORANGE, PAPER_WIDTH, PURPLE, SKY, VERMILION, Figure
from nora.reporting.reported import absent, states_of
from nora.store.record import Record
from nora.tables.panels import Curve, Panels, by_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
_MARKERS = ("o", "s", "^", "v", "D", "P", "X")  # with few of them on each line: in grey some colours are alike
_LINES = {"solid": "-", "dotted": ":", "dashed": "--"}
_ONE_COLUMN = 6  # curves whose legend has one column
_LEGEND_LINE = 0.048  # of the axis, a line of the legend
_EXCESS_FLOOR = 1e-7
_FLOOR = 1e-17  # what a log axis shows for an exact zero


@dataclass(frozen=True)
class Band:
    """A curve over its seeds: geometric mean, smallest and largest per iteration."""

    steps: tuple[int, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def band(records: Sequence[Record], metric: str) -> Band:
    """The band of some records of one curve; where a seed stopped early its last value stays."""
    longest = max((r.metrics["steps"] for r in records), key=len)
    columns = []
    for record in records:
        values = [math.inf if v is None else max(v, _FLOOR) for v in _values(record, metric)]
        columns.append(values + [values[-1]] * (len(longest) - len(values)))
    rows = list(zip(*columns, strict=True))
    middle = tuple(math.exp(math.fsum(map(math.log, row)) / len(row)) for row in rows)
    return Band(tuple(longest), middle, tuple(map(min, rows)), tuple(map(max, rows)))


def _values(record: Record, metric: str) -> list[float | None]:
    """A recorded metric; "excess" is how far the error is above that of the best rank-r approximation, relatively."""
    # Records keep eight digits of the error: a smaller excess cannot be read from them.
    trace: Mapping[str, list[float | None]] = record.metrics["trace"]
    if metric != "excess":
        return trace[metric]
    best = record.metrics["best_error"]
    return [None if v is None else max(v / best - 1, _EXCESS_FLOOR) for v in trace["error"]]


def build(target: Panels, records: Mapping[str, Record]) -> Figure:
    """One pair of axes per panel; a curve without all its runs says so in the legend."""
    cells = target.cells(records)
    runs = by_curve(records, cells)
    rows: list[tuple[object, ...]] = []
    drawn: dict[str, list[tuple[Curve, Band | None]]] = {}
    for name in target.panels:
        panel = target.file.panels[name]
        drawn[name] = []
        for curve in panel.curves:
            wanted = target.curve_seeds(curve)
            found = [
                r for seed in wanted if (r := runs[name, curve.label].get(seed)) is not None and r.status == "done"
            ]
            measured = band(found, panel.metric) if found and len(found) == len(wanted) else None
            drawn[name].append((curve, measured))
            if measured is not None:
                rows += [
                    (name, curve.label, step, f"{m:.6g}", f"{lo:.6g}", f"{hi:.6g}", len(found))
                    for step, m, lo, hi in zip(
                        measured.steps, measured.middle, measured.low, measured.high, strict=True
                    )
                ]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots(1, len(target.panels), squeeze=False)[0]
        for ax, name in zip(axes, target.panels, strict=True):
            panel = target.file.panels[name]
            _panel(ax, drawn[name])
            ax.set_title(panel.title, fontsize=7)
            ax.set_xlabel("iteration")
            ax.set_ylabel(panel.y_label)

    lacking = absent(states_of(cells, records))
    return Figure(
        name=target.name,
        title=labels.heading(target.name, target.file.title),
        size=(PAPER_WIDTH, 2.7),
        draw=draw,
        banner=lacking,
        csv_header=("panel", "curve", "iteration", "geometric_mean", "min", "max", "seeds"),
        csv_rows=tuple(rows),
        notes=(*target.file.caption, f"Seeds: {', '.join(map(str, target.seeds))}."),
    )


def _panel(ax: Axes, curves: Sequence[tuple[Curve, Band | None]]) -> None:
    for i, (curve, measured) in enumerate(curves):
        number = i if curve.colour is None else curve.colour
        colour = _COLOURS[number % len(_COLOURS)]
        marked: Any = {
            "marker": _MARKERS[number % len(_MARKERS)],
            "markersize": 2.6,
            "markevery": (0.03 + 0.021 * (i % 7), 0.15),  # fractions of the axes, not of the points
        }
        label = curve.label.replace("e-0", "e-") + (" (incomplete)" if measured is None else "")
        if measured is None:
            ax.plot([], [], _LINES[curve.style], color=colour, label=label, **marked)
            continue
        line: Any = {"color": colour, "label": label, "linewidth": 1.2, **marked}
        ax.plot(measured.steps, measured.middle, _LINES[curve.style], **line)
        ax.fill_between(measured.steps, measured.low, measured.high, color=colour, alpha=0.18, linewidth=0)
        if curve.inset is not None:
            inset: Any = ax.inset_axes(tuple(curve.inset))  # type: ignore[arg-type]  # four numbers
            inset.plot(measured.steps, measured.middle, _LINES[curve.style], color=colour, linewidth=1)
            inset.set_yscale("log")
            inset.tick_params(labelsize=5)
            inset.set_title(f"{curve.label.split(',')[0]}, all iterations", fontsize=5, pad=2)
    ax.set_yscale("log")
    others = [m.steps[-1] for c, m in curves if m is not None and c.inset is None]
    if others:
        ax.set_xlim(0, max(others))
    beside = 2 if len(curves) > _ONE_COLUMN else 1
    ax.legend(
        loc="upper right", frameon=False, fontsize=5.5, handlelength=1.6, labelspacing=0.25, columnspacing=1.0,
        ncols=beside, borderaxespad=0.2,
    )  # fmt: skip
    # Room for the legend's lines above the curves.
    share = _LEGEND_LINE * math.ceil(len(curves) / beside)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** (share / (1 - share)))

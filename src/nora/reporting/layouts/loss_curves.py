"""Loss along DreamBooth training: the mean over seeds of each run's moving average, with a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nora.reporting import labels
from nora.reporting.figures import BLUE, GREEN, ORANGE, PAPER_WIDTH, VERMILION, Figure
from nora.reporting.layouts.subject_losses import finished
from nora.reporting.statistics import summarize
from nora.store.record import Record
from nora.tables.subjects import Subjects

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


_WINDOW = 50
_EVERY = 10  # a mean of fifty steps moves little in ten
_STYLES = {"lora": (BLUE, "-"), "lora_p": (GREEN, ":"), "nora": (ORANGE, "-"), "nora_plus": (VERMILION, "-.")}


def moving_average(values: Sequence[float], window: int = _WINDOW) -> list[float]:
    """Mean of the ``window`` values that end at each step, from the first step that has so many."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    window = min(window, len(values))
    return [(sums[i] - sums[i - window]) / window for i in range(window, len(values) + 1)]


def build(target: Subjects, records: Mapping[str, Record]) -> Figure:
    """Left: the losses; right: their difference from LoRA's within each seed."""
    found = finished(target.cells(records), records)
    smooth = {
        method: [moving_average(r.metrics["loss"]["steps"]) for r in runs if r is not None]
        for method, runs in found.items()
        if runs and all(r is not None for r in runs)
    }
    base = smooth.get("lora")
    beside = {
        method: [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(runs, base, strict=True)]
        for method, runs in smooth.items()
        if base is not None and method != "lora"
    }
    steps = max((len(r.metrics["loss"]["steps"]) for runs in found.values() for r in runs if r is not None), default=0)
    first = min(_WINDOW, steps)
    rows: list[tuple[str, str, int, float, float]] = []
    for panel, curves in (("loss", smooth), ("minus_lora", beside)):
        for method, runs in curves.items():
            for i, values in list(enumerate(zip(*runs, strict=True)))[::_EVERY]:
                summary = summarize(values)
                mean, std = (
                    float(f"{value:.10g}") for value in (summary.mean, summary.std or 0.0)
                )  # as records have it
                rows.append((panel, method, first + i, mean, std))
    missing = sorted(labels.method(m) for m in found if m not in smooth)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots(1, 2)
        for ax, panel in zip(axes, ("loss", "minus_lora"), strict=True):
            for method, (colour, style) in _STYLES.items():
                points = [(step, m, s) for p, name, step, m, s in rows if (p, name) == (panel, method)]
                if not points:
                    continue
                x, mean = [p[0] for p in points], [p[1] for p in points]
                ax.plot(x, mean, style, color=colour, label=labels.method(method), linewidth=1)
                low, high = [m - s for _, m, s in points], [m + s for _, m, s in points]
                ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            ax.set_xlabel("step")
        axes[1].axhline(0.0, color="#888888", linewidth=0.6)
        axes[0].set_ylabel(f"loss, mean of {first} steps")
        axes[1].set_ylabel("loss minus LoRA's, same seed")
        handles, names = axes[0].get_legend_handles_labels()
        if handles:
            canvas.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        for ax in axes:
            if not ax.get_legend_handles_labels()[0]:
                ax.text(0.5, 0.5, "missing", ha="center", va="center", transform=ax.transAxes)

    return Figure(
        name=f"{target.name}.{target.scale}",
        title=labels.heading(target.name, target.file.title),
        size=(PAPER_WIDTH, 2.6),
        draw=draw,
        csv_header=("panel", "method", "step", "mean", "std"),
        csv_rows=tuple(rows),
        banner=labels.BANNERS[target.scale],
        notes=(
            f"Each run's loss averaged over the {first} steps up to the one shown, every {_EVERY}th step; then mean "
            f"and ± one standard deviation over {len(target.seeds)} seeds. Right: the same of the difference from LoRA "
            "with the same draws.",
            *((f"Missing: {', '.join(missing)}.",) if missing else ()),
        ),
    )

"""A progress bar for one run: loss, steps per second, time left. Quiet where nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nora.runs.context import Update


@contextmanager
def progress_bar(label: str, *, enabled: bool) -> Iterator[object]:
    """Yields a callable that takes Updates; draws on standard error, only on a terminal."""
    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield lambda update: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None, values="", rate="")

        def show(update: Update) -> None:
            speed = progress.tasks[task].speed
            progress.update(
                task,
                description=f"{label} {update.phase}",
                completed=update.step,
                total=update.total,
                values=" ".join(f"{k} {v:.4g}" for k, v in update.values.items() if k != "lr"),
                rate=f"{speed:.1f} step/s" if speed else "",
            )

        yield show

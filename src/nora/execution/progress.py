"""What an attempt says while it works: journal, heartbeat, tracker, a progress bar where somebody watches."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nora.execution.tracker import Tracker
from nora.files import write_atomic
from nora.kinds.parts.recipe import Update
from nora.store.attempt import HEARTBEAT_SECONDS, Attempt


class Reporter:
    """Journal, heartbeat, tracker and progress of one attempt; a context."""

    def __init__(self, attempt: Attempt, tracker: Tracker, show: Callable[[Update], None]) -> None:
        self._folder = attempt.path
        self._tracker = tracker
        self._show = show
        self._file = attempt.journal.open("a", encoding="utf-8")
        self._file.write(json.dumps(attempt.stamp()) + "\n")
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, args=(attempt,), daemon=True)
        self._beats.start()

    def _beat(self, attempt: Attempt) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a full disk is the run's to report
                attempt.beat()

    def __call__(self, update: Update) -> None:
        line = {"phase": update.phase, "step": update.step, "total": update.total, **update.values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if update.values:
            self._tracker.log(update.values, update.step)
        self._show(update)

    def picture(self, name: str, data: bytes, step: int) -> None:
        """Keeps a JPEG beside the journal and hands it to the tracker."""
        path = self._folder / f"{name}-{step:06d}.jpg"
        write_atomic(path, data)
        self._tracker.picture(name, path, step)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with suppress(OSError):
            self._file.close()


@contextmanager
def progress_bar(label: str, *, enabled: bool) -> Iterator[Callable[[Update], None]]:
    """Yields a callable that takes Updates; draws on standard error, only on a terminal."""
    console = Console(file=sys.__stderr__)
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

"""What an attempt says while it works: journal, heartbeat, tracker, a progress bar where somebody watches."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

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
        self._counted = 0.0
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, args=(attempt,), daemon=True)
        self._beats.start()

    def _beat(self, attempt: Attempt) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a full disk is the run's to report
                attempt.beat()

    def __call__(self, update: Update) -> None:
        counts = not update.values and 0 < update.step < update.total
        if not counts or time.monotonic() - self._counted >= 1.0:  # an evaluation's batches may be thousands
            self._counted = time.monotonic()
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


_BAR = 12  # columns


class Sight:
    """What somebody sees of work under way: on a terminal one line that is drawn over itself many times a second, piped
    a line a minute. On standard error; a context."""

    EVERY_SECONDS = 60.0

    def __init__(self, label: str, *, enabled: bool) -> None:
        self._text, self._over = "", threading.Event()
        console = Console(file=sys.__stderr__, highlight=False)
        self._drawn: Progress | None = None
        self._said: threading.Thread | None = None
        if enabled and console.is_terminal and not console.is_dumb_terminal:
            turning = "dots" if console.encoding.startswith("utf") else "line"
            named = _plain("{task.description}")
            columns = (SpinnerColumn(turning), named, BarColumn(_BAR), _plain("{task.fields[text]}"))
            self._room = max(console.width - _BAR - len(label) - 5, 10)
            self._drawn = Progress(*columns, console=console, transient=True, expand=False)
            self._task = self._drawn.add_task(label, total=None, text="")
        elif enabled:
            self._said = threading.Thread(target=self._say_now_and_then, args=(label,), daemon=True)

    def __enter__(self) -> Sight:
        if self._drawn is not None:
            self._drawn.start()
        elif self._said is not None:
            self._said.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._drawn is not None:
            self._drawn.stop()

    def update(self, done: float, total: float | None, text: str) -> None:
        """How far it is, and what is said beside the bar; ``total=None``: nobody knows of how much."""
        self._text = "".join(letter if letter.isprintable() else "?" for letter in text)
        if self._drawn is not None:
            short = self._text if len(self._text) <= self._room else f"{self._text[: self._room - 1]}…"
            self._drawn.update(self._task, completed=done, total=total, text=short)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._drawn is not None:
            self._drawn.console.print(line, markup=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _say_now_and_then(self, label: str) -> None:
        began = time.monotonic()
        while not self._over.wait(self.EVERY_SECONDS):
            with suppress(OSError, ValueError):  # standard error may be gone
                print(
                    f"{label} {self._text}, {_minutes(time.monotonic() - began)} so far",
                    file=sys.__stderr__,
                    flush=True,
                )


def _plain(template: str) -> TextColumn:
    return TextColumn(template, markup=False)


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


class Pace:
    """The time that is left, at the pace since the first unit of work was seen."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left(self, done: float, total: float) -> str:
        """ "3.1 min left"; "" as long as too little is done to say so."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done) if done > 0 else None
            return ""
        since, before = self._first
        if done <= before or now - since < 1.0:
            return ""
        return f"{_minutes((now - since) / (done - before) * (total - done))} left"


def step_text(phase: str, step: int, total: int, values: Mapping[str, float]) -> str:
    """ "train 120/300 loss 0.53"."""
    counted = f" {step}/{total}" if total > 1 else ""
    return f"{phase}{counted}" + (f" loss {values['loss']:.4g}" if "loss" in values else "")


@contextmanager
def progress_bar(label: str, *, enabled: bool) -> Iterator[Callable[[Update], None]]:
    """Yields a callable that takes the Updates of one run and shows them: phase, steps, loss, time left."""
    with Sight(label, enabled=enabled) as sight:
        phase, pace = "", Pace()
        sight.update(0, None, "starting")

        def show(update: Update) -> None:
            nonlocal phase, pace
            if update.phase != phase:
                phase, pace = update.phase, Pace()
            text = step_text(update.phase, update.step, update.total, update.values)
            left = pace.left(update.step, update.total)
            known = update.total > 1
            sight.update(update.step, update.total if known else None, " · ".join(filter(None, (text, left))))

        yield show

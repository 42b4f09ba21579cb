"""Ctrl-C, TERM and HUP: a question that a run asks between its steps, so that it ends with its state saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TOGETHER_SECONDS = 1.0
_SAID = b"\nnora: stopping after this step, its state is saved (once more: at once)\n"


class Stops:
    """Whether this process was told to stop. The second time it is told it stops at once, by KeyboardInterrupt; what
    comes within a second of the first is the same order (a terminal tells everybody, a launcher tells its workers)."""

    def __init__(self) -> None:
        self._since: float | None = None

    def requested(self) -> bool:
        """Whether the run is to save its state and stop."""
        return self._since is not None

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            with suppress(OSError):  # after HUP the terminal is gone
                os.write(2, _SAID)
        elif now - self._since > _TOGETHER_SECONDS:
            raise KeyboardInterrupt


_listening: Stops | None = None


@contextmanager
def listening(signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[Stops]:
    """Signals are orders to stop as long as this lasts; within another of these it is the same one. What was started
    with a signal ignored (nohup, a shell's background) goes on ignoring it."""
    global _listening
    if _listening is not None or threading.current_thread() is not threading.main_thread():
        yield _listening or Stops()
        return
    stops = _listening = Stops()
    before = {number: signal.getsignal(number) for number in signals}
    heard = [number for number in signals if before[number] is not signal.SIG_IGN]
    try:
        for number in heard:
            signal.signal(number, stops.take)
        yield stops
    finally:
        _listening = None
        for number in heard:
            signal.signal(number, before[number])

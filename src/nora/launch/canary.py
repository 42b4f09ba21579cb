"""``nora launch --canary``: one short run per resource class at true shapes; its memory and step time are printed."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nora.config.spec import run_id
from nora.errors import UserError
from nora.launch import slurm
from nora.launch.cluster import Cluster, check_specs, current_plan, submit_cells
from nora.launch.plan import SUBMITTABLE, PlannedCell
from nora.launch.profile import load_profile
from nora.launch.queue import read_queue, with_queue
from nora.launch.submission import class_of
from nora.store.record import Record
from nora.store.runs import Store
from nora.tables.estimate import memory_gib
from nora.tables.search import Cell
from nora.tables.target import Target

STEPS = 20
_POLL_SECONDS = 2.0


def canary_cells(planned: Sequence[PlannedCell]) -> list[Cell]:
    """Of each resource class the missing cell that needs the most memory, as far as that is known, cut to twenty steps:
    another spec, hence another id."""
    made: dict[Any, Cell] = {}
    missing = [p.cell for p in planned if p.state in SUBMITTABLE and p.cell.spec is not None]
    for cell in sorted(missing, key=lambda cell: -(memory_gib(cell)[0] or 0.0)):  # stable: else the first one
        if cell.spec is None or class_of(cell) in made:
            continue
        key = {"finetune": "max_steps", "dreambooth": "steps"}.get(cell.spec["kind"], "iterations")
        steps = min(STEPS, cell.spec["protocol"].get(key) or STEPS)
        spec = {**cell.spec, "protocol": {**cell.spec["protocol"], key: steps}}
        overrides = (*cell.overrides, f"protocol.{key}={steps}")
        made[class_of(cell)] = replace(cell, spec=spec, id=run_id(spec), overrides=overrides)
    return list(made.values())


def _line(cell: Cell, record: Record | None, reason: str) -> str:
    name = f"{cell.row} {cell.column} {cell.id}"
    if record is None:
        return f"canary {name}: FAILED: {reason}"
    run, steps = record.run, record.metrics.get("steps")
    took = run.get("train_seconds", run.get("seconds", run["wall_seconds"]))
    speed = f"{1000 * took / steps:.1f} ms a step, " if isinstance(steps, int) and steps else ""
    memory = f"{run['peak_memory_gib']:.1f} GiB {'of the GPU' if run['device'] == 'cuda' else 'of memory'}"
    return f"canary {name}: {record.status}: {speed}{run['wall_seconds']:.0f} s in all, {memory} ({run['cpu']})"


def launch_canary(table: Target, cluster: Cluster, exec_overrides: Sequence[str], *, dry_run: bool = False) -> int:
    """Runs the canaries where the launch would run and waits for them; 1 where one fails. Their records stand apart
    from the table's, below canary/. With ``dry_run`` says which would run, SLURM's word on them included."""
    store = Store(cluster.store.root / "canary")
    there = replace(cluster, store=store, settings=replace(cluster.settings, results=str(store.root)))
    cells = canary_cells(current_plan(table, cluster, None))
    if not cells:
        print(f"{table.headline}: nothing is missing, no canary")
        return 0
    check_specs(cells)
    fresh = [c for c in cells if c.spec is not None and store.read(c.spec["kind"], str(c.id)) is None]
    if dry_run and cluster.settings.name != "slurm":
        for cell in fresh:
            print(shlex.join(["nora", "run", *cell.overrides, f"exec.results={store.root}"]))
        return 0
    if cluster.settings.name == "slurm":
        if not slurm.installed():
            raise UserError("exec=slurm: sbatch is not found; this is no machine of a SLURM cluster")
        profile = load_profile(cluster.checkout, cluster.settings)
        if fresh:
            submit_cells(table.name, fresh, replace(profile, runs_per_task=1), there, dry_run=dry_run)
        if dry_run:
            return 0
        if fresh:
            print("waiting for the canaries (Ctrl-C leaves them running)", file=sys.stderr, flush=True)
            while _unfinished(fresh, store):
                time.sleep(_POLL_SECONDS)
    elif fresh:
        from nora.launch.local import run_cells

        settings = cluster.settings
        overrides = [*exec_overrides, f"exec.results={store.root}"]
        run_cells(
            fresh,
            checkout=cluster.checkout,
            processes=1,
            threads=settings.threads,
            exec_overrides=overrides,
            on_finished=lambda finished: None,
        )
    code = 0
    for cell in cells:
        assert cell.spec is not None and cell.id is not None
        state = store.state(cell.spec["kind"], cell.id)
        code |= state.record is None
        print(_line(cell, state.record, state.reason or state.state))
    return int(code)


def _unfinished(cells: Sequence[Cell], store: Store) -> bool:
    queue = read_queue(store.root)
    for cell in cells:
        assert cell.spec is not None and cell.id is not None
        kind = cell.spec["kind"]
        if with_queue(store.state(kind, cell.id), store, kind, cell.id, queue).state in ("queued", "running"):
            return True
    return False

"""The verbs of a campaign: plan, launch, status, retry, cancel, logs, why. They print; the command line parses."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from nora.launch import slurm
from nora.launch.cluster import Cluster, current_plan, launch_slurm, layout_lines, planned_scripts
from nora.launch.inspect import cancel, logs, logs_text, why, why_text
from nora.launch.plan import RETRIED, SUBMITTABLE, PlannedCell, counts
from nora.launch.progress import eta_hours, progress
from nora.launch.queue import Queue, read_queue
from nora.launch.show import plan_text, status_text
from nora.launch.submission import FOLDER
from nora.runs.errors import RunFailed, UserError
from nora.tables.cells import SpecBook
from nora.tables.table import Table
from nora.tables.targets import Target

_REFRESH_SECONDS = 5.0


def queue_of(cluster: Cluster) -> Queue | None:
    """What SLURM holds; None, with a warning, where it was used and does not answer: the markers then stand alone."""
    if not (cluster.store.root / FOLDER).is_dir() or not slurm.installed():
        return None
    try:
        return read_queue(cluster.store.root)
    except RunFailed as error:
        print(f"nora: {error}; states are from the runs' own markers alone", file=sys.stderr)
        return None


def _planned(tables: Sequence[Target], cluster: Cluster) -> dict[str, list[PlannedCell]]:
    records, damaged = cluster.store.read_all()
    for line in damaged:
        print(f"nora: {line}", file=sys.stderr)
    queue = queue_of(cluster)
    books: dict[str, SpecBook] = {}  # what targets share is worked out once
    planned = {}
    for table in tables:
        book = None
        if isinstance(table, Table):
            book = books.setdefault(SpecBook.shared_by(table), SpecBook(cluster.checkout, table))
        planned[table.name] = current_plan(table, cluster, queue, records, book)
    return planned


def plan_command(tables: Sequence[Target], cluster: Cluster, *, as_json: bool, sbatch: bool) -> int:
    """Each cell's state, reason and cost; for a cluster the arrays, with ``sbatch`` their scripts."""
    planned = _planned(tables, cluster)
    on_cluster = cluster.settings.name == "slurm"
    if sbatch and not on_cluster:
        raise UserError("--sbatch: given exec=local, required exec=slurm")
    if as_json:
        print(json.dumps({name: [p.to_dict() for p in cells] for name, cells in planned.items()}, indent=1))
        return 0
    for table in tables:
        if sbatch:
            print(planned_scripts(table, planned[table.name], cluster) or f"# {table.headline}: nothing to submit")
            continue
        print(plan_text(table, planned[table.name]))
        if on_cluster:
            for line in layout_lines(planned[table.name], cluster):
                print(line)
    return 0


def launch_command(
    tables: Sequence[Target],
    cluster: Cluster,
    exec_overrides: Sequence[str],
    *,
    dry_run: bool,
    retry: bool = False,
    canary: bool = False,
) -> int:
    """Runs or submits what is missing; with ``retry`` what failed."""
    from nora.launch.campaign import launch_local

    code = 0
    for table in tables:
        if canary:
            from nora.launch.canary import launch_canary

            code |= launch_canary(table, cluster, exec_overrides, dry_run=dry_run)
        elif cluster.settings.name == "slurm":
            code |= launch_slurm(table, cluster, retry=retry, dry_run=dry_run)
        elif dry_run:
            for p in _planned([table], cluster)[table.name]:
                if p.state in (RETRIED if retry else SUBMITTABLE):
                    print(shlex.join(["nora", "run", *p.cell.overrides]))
        else:
            code |= launch_local(
                table,
                checkout=cluster.checkout,
                store=cluster.store,
                processes=cluster.settings.processes,
                threads=cluster.settings.threads,
                exec_overrides=exec_overrides,
                queue=queue_of(cluster),
                retry=retry,
            )
    return code


def _under_way(cells: Sequence[PlannedCell], steps: dict[str, Any]) -> dict[str, Any]:
    """Progress and time left, while something runs or is queued."""
    if not any(p.state in ("running", "queued") for p in cells):
        return {}
    return {"progress": steps, "eta_hours": eta_hours(cells)}


def status_command(tables: Sequence[Target], cluster: Cluster, *, as_json: bool, watch: bool) -> int:
    """Counts, progress of what runs, time left."""
    while True:
        planned = _planned(tables, cluster)
        steps = {name: progress(cells, cluster.store) for name, cells in planned.items()}
        if as_json:
            body = {name: {**counts(cells), **_under_way(cells, steps[name])} for name, cells in planned.items()}
            print(json.dumps(body), flush=True)
        else:
            text = "\n".join(status_text(table, planned[table.name], steps[table.name]) for table in tables)
            print(("\033[2J\033[H" if watch and sys.stdout.isatty() else "") + text, flush=True)
        if not watch or not any(p.state in ("running", "queued") for cells in planned.values() for p in cells):
            return 0
        time.sleep(_REFRESH_SECONDS)


def cancel_command(tables: Sequence[Target], cluster: Cluster, *, dry_run: bool) -> int:
    """Takes a target's runs out of SLURM; what they saved stays and is continued by the next launch."""
    if not slurm.installed():
        raise UserError("cancel: squeue is not found; this is no machine of a SLURM cluster")
    queue = read_queue(cluster.store.root)
    for table in tables:
        ids = {p.cell.id for p in current_plan(table, cluster, queue) if p.cell.id is not None}
        print("\n".join(cancel(cluster.store, ids, queue, dry_run=dry_run)) or f"{table.name}: nothing is queued")
    return 0


def logs_command(identity: str, cluster: Cluster, *, as_json: bool) -> int:
    """Where a run's logs are and how they end."""
    found = logs(cluster.store, identity)
    print(json.dumps(found, indent=1) if as_json else logs_text(found))
    return 0


def why_command(identity: str, cluster: Cluster, *, as_json: bool) -> int:
    """Why a run is in its state."""
    found = why(cluster.store, identity, queue_of(cluster))
    print(json.dumps(found, indent=1) if as_json else why_text(found))
    return 0

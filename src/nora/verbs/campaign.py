"""plan, launch, retry, status, cancel, logs, why: a target's runs on their way."""

from __future__ import annotations

import json
import shlex
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nora.errors import RunFailed, UserError
from nora.launch import queue as slurm_queue
from nora.launch import slurm
from nora.launch.cluster import Cluster, current_plan, launch_slurm, layout_lines, planned_scripts
from nora.launch.plan import RETRIED, STATES, SUBMITTABLE, PlannedCell, counts, eta_hours, progress
from nora.launch.queue import Queue, logs_text, read_queue, why_text
from nora.launch.submission import FOLDER
from nora.tables.estimate import memory_gib
from nora.tables.search import SpecBook
from nora.tables.table import Table
from nora.tables.target import Target
from nora.verbs.asked import cluster_of, exec_settings, read_targets

_LISTED = 40  # cells shown one by one; larger plans are summed up (--json has them all)


def _hours(planned: Sequence[PlannedCell]) -> str:
    known = [p.hours for p in planned if p.hours is not None]
    if not known:
        return "cost unknown"
    total = sum(known)
    figure = f"{total:.1f} h" if total >= 1 else f"{60 * total:.1f} min"
    return figure + (f" (of {len(known)} of {len(planned)} cells)" if len(known) < len(planned) else "")


def _head(table: Target, planned: Sequence[PlannedCell]) -> str:
    tally = ", ".join(f"{n} {state}" for state, n in counts(planned).items())
    return f"{table.headline}: {len(planned)} cells: {tally}"


def plan_text(table: Target, planned: Sequence[PlannedCell]) -> str:
    """State, reason and cost: cell by cell for a small plan, summed by row and stage for a large one."""
    lines = [_head(table, planned)]
    rest = [p for p in planned if p.state not in ("done", "diverged")]
    lines.append(f"still to run: {len(rest)} cells, {_hours(rest)} on one device" if rest else "nothing to run")
    sources = sorted({p.cost_source for p in rest if p.hours is not None})
    lines += [f"  cost: {source}" for source in sources]
    memory = [(gib, source) for gib, source in (memory_gib(p.cell) for p in rest) if gib is not None]
    if memory:
        largest, source = max(memory)
        lines.append(f"  memory: up to {largest:.0f} GiB a run ({source})")
    if len(rest) <= _LISTED:
        for p in rest:
            settings = " ".join(f"{k.split('.')[-1]}={v}" for k, v in p.cell.settings.items())
            lines.append(
                f"  {p.cell.id or '-' * 16}  {p.state:8} {p.cell.row:10} {p.cell.column:8} seed {p.cell.seed}  "
                f"{settings}  {p.reason}".rstrip()
            )
        return "\n".join(lines)
    width = max(len(p.cell.row) for p in planned)
    groups = Counter((p.cell.stage, p.cell.row, p.state, p.reason if p.state == "waits" else "") for p in planned)
    for (stage, row, state, reason), n in sorted(groups.items()):
        lines.append(f"  stage {stage}  {row:{width}} {n:5} {state} {reason}".rstrip())
    lines.append("  (--json lists every cell)")
    return "\n".join(lines)


def _progress_line(p: PlannedCell, steps: Mapping[str, Mapping[str, Any]]) -> str:
    one = steps.get(p.cell.id or "", {})
    where = f"{one['phase']} {one['step']}/{one['total'] or '?'}" if one else "starting"
    left = one.get("seconds_left") if one else None
    time_left = f", {left / 60:.1f} min left" if left is not None else ""
    return f"  {p.cell.id} running {p.cell.row} {p.cell.column} seed {p.cell.seed}: {where}{time_left}"


def status_text(
    table: Target, planned: Sequence[PlannedCell], steps: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Counts of states per row, the progress of what runs (``steps`` by run id), the reasons of what went wrong."""
    width = max((len(p.cell.row) for p in planned), default=0)
    shown = [state for state in STATES if any(p.state == state for p in planned)]
    lines = [_head(table, planned), "  " + " ".join([" " * width, *(f"{state:>8}" for state in shown)])]
    for method in dict.fromkeys(p.cell.row for p in planned):
        tally = Counter(p.state for p in planned if p.cell.row == method)
        lines.append("  " + " ".join([f"{method:{width}}", *(f"{tally[state]:8}" for state in shown)]))
    for p in planned:
        if p.state == "running":
            lines.append(_progress_line(p, steps or {}))
        if p.state in ("failed", "interrupted", "damaged", "diverged", "stale"):
            lines.append(f"  {p.cell.id} {p.state} {p.cell.row} {p.cell.column} seed {p.cell.seed}: {p.reason}")
    rest = [p for p in planned if p.state not in ("done", "diverged")]
    if rest:
        eta = eta_hours(planned)
        lines.append(f"  left: {_hours(rest)} on one device" + (f"; about {eta:.1f} h as it runs now" if eta else ""))
    return "\n".join(lines)


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
    from nora.launch.local import launch_local

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
        print(
            "\n".join(slurm_queue.cancel(cluster.store, ids, queue, dry_run=dry_run))
            or f"{table.name}: nothing is queued"
        )
    return 0


def logs_command(identity: str, cluster: Cluster, *, as_json: bool) -> int:
    """Where a run's logs are and how they end."""
    found = slurm_queue.logs(cluster.store, identity)
    print(json.dumps(found, indent=1) if as_json else logs_text(found))
    return 0


def why_command(identity: str, cluster: Cluster, *, as_json: bool) -> int:
    """Why a run is in its state."""
    found = slurm_queue.why(cluster.store, identity, queue_of(cluster))
    print(json.dumps(found, indent=1) if as_json else why_text(found))
    return 0


def plan(options: Namespace) -> int:

    tables, settings, _ = read_targets(options.targets)
    return plan_command(tables, cluster_of(settings), as_json=options.json, sbatch=options.sbatch)


def launch(options: Namespace) -> int:
    """``launch``, and ``retry``, which is a launch of what failed."""

    tables, settings, exec_overrides = read_targets(options.targets)
    return launch_command(
        tables,
        cluster_of(settings),
        exec_overrides,
        dry_run=options.dry_run,
        retry=options.verb == "retry",
        canary=options.verb == "launch" and options.canary,
    )


def status(options: Namespace) -> int:

    tables, settings, _ = read_targets(options.targets)
    return status_command(tables, cluster_of(settings), as_json=options.json, watch=options.watch)


def cancel(options: Namespace) -> int:

    tables, settings, _ = read_targets(options.targets)
    return cancel_command(tables, cluster_of(settings), dry_run=options.dry_run)


def logs(options: Namespace) -> int:

    return logs_command(options.id, cluster_of(exec_settings(options.overrides)), as_json=options.json)


def why(options: Namespace) -> int:

    return why_command(options.id, cluster_of(exec_settings(options.overrides)), as_json=options.json)

"""plan, launch, retry, status, cancel, logs, why: a target's runs on their way, and how that is told in a terminal."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import click

from nora import kinds
from nora.config.compose import remembering, run_words
from nora.errors import RunFailed, UserError
from nora.files import Json
from nora.launch import queue as slurm_queue
from nora.launch import slurm
from nora.launch.banks import local_banks
from nora.launch.cluster import launch_slurm, layout_lines, planned_scripts
from nora.launch.plan import (
    ENDED,
    RETRIED,
    SUBMITTABLE,
    PlannedCell,
    check_cells,
    counts,
    current_plan,
    device_memory,
    eta_hours,
    progress,
)
from nora.launch.plan import plan as plan_of
from nora.launch.queue import Queue, logs_text, read_queue, why_text
from nora.launch.submission import FOLDER
from nora.store.index import Index
from nora.store.states import Snapshot, State, take_snapshot
from nora.tables.estimate import measured_hours
from nora.tables.target import AnyTarget
from nora.verbs.words import counted, dry_run_flag, in_store, json_flag, of_run, on_targets, read_targets, waiting
from nora.workspace import Workspace, open_workspace, with_wandb

_LISTED = 40  # cells shown one by one; larger plans are summed up (--json has them all)
_TOLD = (State.FAILED, State.INTERRUPTED, State.DAMAGED, State.DIVERGED, State.STALE, State.NEWER)
_REFRESH_SECONDS = 5.0


def _hours(planned: Sequence[PlannedCell]) -> str:
    known = [p.hours for p in planned if p.hours is not None]
    if not known:
        return "cost unknown"
    total = sum(known)
    figure = f"{total:.1f} h" if total >= 1 else f"{60 * total:.1f} min"
    return figure + (f" (of {len(known)} of {len(planned)} cells)" if len(known) < len(planned) else "")


def _head(target: AnyTarget, planned: Sequence[PlannedCell]) -> str:
    tally = ", ".join(f"{n} {state}" for state, n in counts(planned).items())
    return f"{target.headline}: {len(planned)} cells: {tally}"


def memory_lines(rest: Sequence[PlannedCell]) -> list[str]:
    """The largest run, batches that are computed in parts, and runs that do not fit with what would hold them."""
    fits = [(p, p.fit) for p in rest]
    known = [(fit.memory_gib, fit.source) for _, fit in fits if fit.memory_gib is not None]
    lines = []
    if known:
        largest, source = max(known)
        lines.append(f"  memory: up to {largest:.0f} GiB a run ({source})")
    parts = sorted({(p.device_gib, fit.micro_batch_size) for p, fit in fits if fit.micro_batch_size and fit.fits})
    lines += [
        f"  batches in parts of {part}, gradients summed: so they fit {device:g} GiB (exec.micro_batch_size={part})"
        for device, part in parts
    ]
    large = [(fit.memory_gib, p.device_gib) for p, fit in fits if not fit.fits and fit.memory_gib is not None]
    if large:
        most, device = max(large)
        lines.append(
            f"  DOES NOT FIT {device:g} GiB: {len(large)} runs, the largest {most:.0f} GiB with one example at a time; "
            f"a device of {most / 0.9:.0f} GiB would hold it, or a base in 16 bits (model.dtype=bfloat16)"
        )
    return lines


def plan_text(target: AnyTarget, planned: Sequence[PlannedCell]) -> str:
    """State, reason and cost: cell by cell for a small plan, summed by row and stage for a large one."""
    lines = [_head(target, planned)]
    rest = [p for p in planned if p.state not in (*ENDED, State.NEWER)]
    lines.append(f"still to run: {len(rest)} cells, {_hours(rest)} on one device" if rest else "nothing to run")
    sources = sorted({p.cost_source for p in rest if p.hours is not None})
    lines += [f"  cost: {source}" for source in sources]
    lines += memory_lines(rest)
    if len(rest) <= _LISTED:
        for p in rest:
            settings = " ".join(f"{k.split('.')[-1]}={v}" for k, v in p.cell.settings.items())
            lines.append(
                f"  {p.cell.id or '-' * 16}  {p.state:8} {p.cell.row:10} {p.cell.column:8} seed {p.cell.seed}  "
                f"{settings}  {p.reason}{'' if p.fit.fits else f'  does not fit {p.device_gib:g} GiB'}".rstrip()
            )
        return "\n".join(lines)
    width = max(len(p.cell.row) for p in planned)
    groups = Counter((p.cell.stage, p.cell.row, p.state, p.reason if p.state is State.WAITS else "") for p in planned)
    for (stage, row, state, reason), n in sorted(groups.items()):
        lines.append(f"  stage {stage}  {row:{width}} {n:5} {state} {reason}".rstrip())
    lines.append("  (--json lists every cell)")
    return "\n".join(lines)


def _progress_line(p: PlannedCell, steps: Mapping[str, Mapping[str, Json]]) -> str:
    one = steps.get(p.cell.id or "", {})
    where = f"{one['phase']} {one['step']}/{one['total'] or '?'}" if one else "starting"
    left = one.get("seconds_left") if one else None
    time_left = f", {left / 60:.1f} min left" if left is not None else ""
    return f"  {p.cell.id} running {p.cell.row} {p.cell.column} seed {p.cell.seed}: {where}{time_left}"


def status_text(
    target: AnyTarget, planned: Sequence[PlannedCell], steps: Mapping[str, Mapping[str, Json]] | None = None
) -> str:
    """Counts of states per row, the progress of what runs (``steps`` by run id), the reasons of what went wrong."""
    width = max((len(p.cell.row) for p in planned), default=0)
    shown = [state for state in State if any(p.state == state for p in planned)]
    lines = [_head(target, planned), "  " + " ".join([" " * width, *(f"{state:>8}" for state in shown)])]
    for method in dict.fromkeys(p.cell.row for p in planned):
        tally = Counter(p.state for p in planned if p.cell.row == method)
        lines.append("  " + " ".join([f"{method:{width}}", *(f"{tally[state]:8}" for state in shown)]))
    for p in planned:
        if p.state is State.RUNNING:
            lines.append(_progress_line(p, steps or {}))
        if p.state in _TOLD:
            lines.append(f"  {p.cell.id} {p.state} {p.cell.row} {p.cell.column} seed {p.cell.seed}: {p.reason}")
    rest = [p for p in planned if p.state not in (*ENDED, State.NEWER)]
    if rest:
        eta = eta_hours(planned)
        lines.append(f"  left: {_hours(rest)} on one device" + (f"; about {eta:.1f} h as it runs now" if eta else ""))
    return "\n".join(lines)


def queue_of(workspace: Workspace) -> Queue | None:
    """What SLURM holds; None, with a warning, if it was used and does not answer: the markers then stand alone."""
    if not (workspace.store.root / FOLDER).is_dir() or not slurm.installed():
        return None
    try:
        queue = read_queue(workspace.store.root)
    except (RunFailed, UserError) as error:
        print(f"nora: {error}; states are from the runs' own markers alone", file=sys.stderr)
        return None
    for line in queue.lost_lines():
        print(f"nora: {line}", file=sys.stderr)
    return queue


def _planned(targets: Sequence[AnyTarget], workspace: Workspace, snapshot: Snapshot) -> dict[str, list[PlannedCell]]:
    queue = queue_of(workspace)
    several = targets if len(targets) == 1 else counted("planning", targets)
    cells = {target.name: target.cells(snapshot) for target in several}
    for line in kinds.troubles(snapshot):
        print(f"nora: {line}", file=sys.stderr)
    memory, measured = device_memory(workspace), measured_hours(snapshot.values())
    where = (workspace.store, snapshot, queue, memory, measured, workspace.settings)
    return {name: plan_of(own, *where) for name, own in cells.items()}


def _banks(planned: Sequence[PlannedCell], workspace: Workspace) -> list[list[str]]:
    """The ids of the runs that this machine would train in one step each."""
    wanted = [p.cell for p in planned if p.state in SUBMITTABLE]
    banks = local_banks(wanted, workspace.settings) if workspace.settings.name == "local" else []
    return [[str(cell.id) for cell in bank] for bank in banks if len(bank) > 1]


def bank_lines(planned: list[PlannedCell], workspace: Workspace) -> list[str]:
    """How many runs are trained side by side on one base."""
    banks = _banks(planned, workspace)
    if not banks:
        return []
    runs, largest = sum(map(len, banks)), max(map(len, banks))
    return [f"  banks: {runs} runs in {len(banks)}, up to {largest} in one step (exec.bank=1: each by itself)"]


def _with_banks(planned: Sequence[PlannedCell], workspace: Workspace) -> list[dict[str, Json]]:
    """The cells as plain data; ``bank``: the number of the bank that the run would be in, null for none."""
    numbers = {identity: n for n, bank in enumerate(_banks(planned, workspace)) for identity in bank}
    return [{**p.to_dict(), "bank": numbers.get(str(p.cell.id))} for p in planned]


@click.command()
@on_targets
@json_flag
@click.option("--sbatch", is_flag=True, help="print the job scripts (SLURM is not needed)")
def plan(words: Sequence[str], as_json: bool, sbatch: bool) -> int:
    """The cells of a target: state, reason, cost."""
    workspace = open_workspace(words)
    index = Index(workspace.store.root)
    with remembering(index.composed):
        targets, _ = read_targets(words, workspace)
        snapshot = take_snapshot(workspace.store, index)
        planned = _planned(targets, workspace, snapshot)
        index.save()
        for cells in planned.values():
            check_cells(cells, workspace.checkout)
    on_cluster = workspace.settings.name == "slurm"
    if sbatch and not on_cluster:
        raise UserError("--sbatch: given exec=local, required exec=slurm")
    if as_json:
        print(json.dumps({name: _with_banks(cells, workspace) for name, cells in planned.items()}, indent=1))
        return 0
    from nora.reporting.reported import sensitivity_line

    for target in targets:
        if sbatch:
            text = planned_scripts(target, planned[target.name], workspace)
            print(text or f"# {target.headline}: nothing to submit")
            continue
        print(plan_text(target, planned[target.name]))
        line = sensitivity_line(target, snapshot)
        if line:
            print(line)
        for line in (layout_lines if on_cluster else bank_lines)(planned[target.name], workspace):
            print(line)
    return 0


@click.command()
@on_targets
@click.option("--canary", is_flag=True, help="first one short run per resource class: memory, speed")
@dry_run_flag
def launch(words: Sequence[str], canary: bool, dry_run: bool) -> int:
    """Run, or submit, exactly what is missing."""
    return _launch(words, canary=canary, dry_run=dry_run)


@click.command()
@on_targets
@dry_run_flag
def retry(words: Sequence[str], dry_run: bool) -> int:
    """Run or submit again what failed, however often."""
    return _launch(words, retry=True, dry_run=dry_run)


def _launch(words: Sequence[str], *, retry: bool = False, canary: bool = False, dry_run: bool = False) -> int:
    with waiting(f"{' '.join(word for word in words if '=' not in word)}: planning"):
        from nora.launch.canary import launch_canary
        from nora.launch.local import launch_local

        targets, workspace = read_targets(words)
        for target in targets:
            check_cells(current_plan(target, workspace), workspace.checkout)
    if told := with_wandb(words)[1]:
        print(told, file=sys.stderr)
    code = 0
    for target in targets:
        if canary:
            code |= launch_canary(target, workspace, dry_run=dry_run)
        elif workspace.settings.name == "slurm":
            code |= launch_slurm(target, workspace, retry=retry, dry_run=dry_run)
        elif dry_run:
            with waiting(f"{target.name}: planning"):
                planned = _planned([target], workspace, take_snapshot(workspace.store))[target.name]
            for p in planned:
                if p.state in (RETRIED if retry else SUBMITTABLE):
                    print(shlex.join(run_words([*p.cell.overrides, f"exec.results={workspace.settings.results}"])))
        else:
            code |= launch_local(target, workspace, queue=queue_of(workspace), retry=retry)
    return code


def _under_way(cells: Sequence[PlannedCell], steps: Json) -> dict[str, Json]:
    """Progress and time left, while something runs or is queued."""
    if not any(p.state in (State.RUNNING, State.QUEUED) for p in cells):
        return {}
    return {"progress": steps, "eta_hours": eta_hours(cells)}


@click.command()
@on_targets
@json_flag
@click.option("--watch", is_flag=True, help="refresh every few seconds")
def status(words: Sequence[str], as_json: bool, watch: bool) -> int:
    """How far a target is."""
    workspace = open_workspace(words)
    index = Index(workspace.store.root)
    with remembering(index.composed):
        return _status(words, workspace, index, as_json=as_json, watch=watch)


def _status(words: Sequence[str], workspace: Workspace, index: Index, *, as_json: bool, watch: bool) -> int:
    targets, _ = read_targets(words, workspace)
    while True:
        planned = _planned(targets, workspace, take_snapshot(workspace.store, index))
        index.save()
        steps = {name: progress(cells, workspace.store) for name, cells in planned.items()}
        if as_json:
            body = {name: {**counts(cells), **_under_way(cells, steps[name])} for name, cells in planned.items()}
            print(json.dumps(body), flush=True)
        else:
            text = "\n".join(status_text(target, planned[target.name], steps[target.name]) for target in targets)
            if watch and sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\033[2J\033[H")
            print(text, flush=True)
        active = any(p.state in (State.RUNNING, State.QUEUED) for cells in planned.values() for p in cells)
        if not watch or not active:
            return 0
        time.sleep(_REFRESH_SECONDS)


@click.command()
@on_targets
@dry_run_flag
def cancel(words: Sequence[str], dry_run: bool) -> int:
    """Take a target's runs out of SLURM; what they saved stays and is continued by the next launch."""
    targets, workspace = read_targets(words)
    if not slurm.installed():
        raise UserError("cancel: squeue is not found; this is no machine of a SLURM cluster")
    queue = read_queue(workspace.store.root)
    for target in targets:
        ids = {p.cell.id for p in current_plan(target, workspace, queue) if p.cell.id is not None}
        lines = slurm_queue.cancel(workspace.store, ids, queue, dry_run=dry_run)
        print("\n".join(lines) or f"{target.name}: nothing is queued")
    return 0


@click.command()
@of_run
@in_store
@json_flag
def logs(identity: str, words: Sequence[str], as_json: bool) -> int:
    """Where a run's logs are and how they end."""
    found = slurm_queue.logs(open_workspace(words).store.home(identity), identity)
    print(json.dumps(found, indent=1) if as_json else logs_text(found))
    return 0


@click.command()
@of_run
@in_store
@json_flag
def why(identity: str, words: Sequence[str], as_json: bool) -> int:
    """Why a run is in its state: attempts, SLURM jobs, the error."""
    workspace = open_workspace(words)
    found = slurm_queue.why(workspace.store.home(identity), identity, queue_of(workspace))
    print(json.dumps(found, indent=1) if as_json else why_text(found))
    return 0

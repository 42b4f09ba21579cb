"""``nora launch`` with exec=slurm: submits exactly what is missing and returns at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nora import kinds
from nora.errors import RunFailed, UserError
from nora.kinds import AnySpec
from nora.launch import slurm
from nora.launch.plan import RETRIED, SUBMITTABLE, PlannedCell, counts, current_plan
from nora.launch.profile import Profile, load_profile
from nora.launch.queue import read_queue
from nora.launch.submission import Array, create, layout, one_launch_at_a_time, submissions
from nora.store.runs import Store
from nora.store.states import State
from nora.tables.cell import Cell
from nora.tables.target import AnyTarget
from nora.workspace import Workspace


def wanted(
    planned: list[PlannedCell], store: Store, *, max_attempts: int, retry: bool
) -> tuple[list[Cell[AnySpec]], list[str]]:
    """The cells to submit, and one line for each that has failed too often and is left alone."""
    states = RETRIED if retry else SUBMITTABLE
    cells, left = [], []
    for p in planned:
        if p.state not in states or p.cell.id is None or p.cell.spec is None:
            continue
        failures = store.failures(p.cell.spec.kind, p.cell.id) if p.state is State.FAILED else 0
        if failures >= max_attempts and not retry:
            left.append(f"{p.cell.id} has failed {failures} times: left alone (nora why {p.cell.id}; nora retry)")
        else:
            cells.append(p.cell)
    return cells, left


def check_specs(cells: Sequence[Cell[AnySpec]]) -> None:
    """UserError if a run's Hub inputs have no commit: found here, not on the node."""
    for cell in cells:
        assert cell.spec is not None
        kinds.check_ready(cell.spec)


def scripts(arrays: list[Array], profile: Profile, *, target: str, folder: Path, code: Path) -> list[str]:
    """The job script of every array."""
    from nora.launch.submit import script

    return [
        script(array, profile, folder=folder, name=f"nora-{target}-{folder.name}-{number}", code=code)
        for number, array in enumerate(arrays)
    ]


def planned_scripts(target: AnyTarget, planned: list[PlannedCell], workspace: Workspace) -> str:
    """What ``nora plan --sbatch`` prints: the script of every array that a launch would submit; no SLURM needed."""
    profile = load_profile(workspace.checkout, workspace.settings)
    cells, _ = wanted(planned, workspace.store, max_attempts=profile.max_attempts, retry=False)
    arrays = layout(cells, profile, workspace.settings)
    code = workspace.checkout
    if workspace.settings.code == "snapshot":
        code = workspace.store.root / "snapshots" / "COMMIT"
    folder = workspace.store.root / "submissions" / "ID"
    texts = scripts(arrays, profile, target=target.name, folder=folder, code=code)
    return "\n".join(
        f"# array {n}: {array.num_runs} runs of {array.label} in {len(array.tasks)} tasks\n{text}"
        for n, (array, text) in enumerate(zip(arrays, texts, strict=True))
    )


def layout_lines(planned: list[PlannedCell], workspace: Workspace) -> list[str]:
    """One line per array of a launch: tasks, resources, runs per task."""
    profile = load_profile(workspace.checkout, workspace.settings)
    cells, left = wanted(planned, workspace.store, max_attempts=profile.max_attempts, retry=False)
    lines = []
    for number, array in enumerate(layout(cells, profile, workspace.settings)):
        r = array.resources
        lines.append(
            f"  array {number}: {array.label}: {array.num_runs} runs in {len(array.tasks)} tasks, "
            f"{min(profile.parallel, len(array.tasks))} at once, each {r.gpus} GPU, {r.cpus} CPUs, {r.mem_gb:g} GB, "
            f"{r.time_min} min"
        )
    return lines + [f"  {line}" for line in left]


def launch_slurm(target: AnyTarget, workspace: Workspace, *, retry: bool = False, dry_run: bool = False) -> int:
    """Submits what is missing (with ``retry``: what failed, however often); 0 when SLURM has taken all of it.

    UserError, with nothing queued, where SLURM would not take an array.
    """
    profile = load_profile(workspace.checkout, workspace.settings)
    if not slurm.installed():
        raise UserError("exec=slurm: sbatch is not found; this is no machine of a SLURM cluster (exec=local runs here)")
    with one_launch_at_a_time(workspace.store.root):
        _adopt(workspace.store.root)
        queue = read_queue(workspace.store.root)
        for line in queue.lost_lines():
            raise RunFailed(line)
        planned = current_plan(target, workspace, queue)
        cells, left = wanted(planned, workspace.store, max_attempts=profile.max_attempts, retry=retry)
        for line in left:
            print(line)
        tally = ", ".join(f"{n} {state}" for state, n in counts(planned).items())
        if not cells:
            print(f"{target.headline}: nothing to submit: {tally}", flush=True)
            return 0
        check_specs(cells)
        limit = slurm.max_array_size()
        if limit is not None:
            profile = replace(profile, max_array_size=min(profile.max_array_size, max(1, limit - 1)))
        submit_cells(target.name, cells, profile, workspace, dry_run=dry_run)
        waiting = counts(planned).get(State.WAITS, 0)
        if waiting:
            print(f"{waiting} cells wait for a choice; launch again when the first stage is done")
    return 0


def submit_cells(
    target: str, cells: list[Cell[AnySpec]], profile: Profile, workspace: Workspace, *, dry_run: bool = False
) -> None:
    """Asks SLURM about every array, then freezes and submits them."""
    from nora.execution import provenance
    from nora.launch.submission import snapshot_code
    from nora.launch.submit import submit

    arrays = layout(cells, profile, workspace.settings)
    store = workspace.store
    preview = scripts(arrays, profile, target=target, folder=store.root / "submissions" / "ID", code=workspace.checkout)
    for warning in dict.fromkeys(slurm.test_only(text, profile.partition) for text in preview):
        if warning:
            print(f"nora: {warning}: submitted all the same, to wait", file=sys.stderr, flush=True)
    if not dry_run:
        if workspace.settings.code == "snapshot":
            code, commit = snapshot_code(workspace.checkout, store.root)
        else:
            code, commit = workspace.checkout, provenance.code_version(workspace.checkout)["commit"]
        unique = {str(cell.id): cell for cell in cells}
        kind_of = {identity: cell.spec.kind for identity, cell in unique.items() if cell.spec is not None}
        submission = create(
            store.root,
            target=target,
            arrays=arrays,
            cells=unique,
            dead_up_to={i: max((a.number for a in store.attempts(k, i)), default=0) for i, k in kind_of.items()},
            failures_allowed={i: store.failures(k, i) + profile.max_attempts for i, k in kind_of.items()},
            settings=workspace.settings,
            code=code,
            commit=commit,
            requeue=profile.requeue,
        )
    for number, array in enumerate(arrays):
        words = f"{array.num_runs} runs of {array.label} in {len(array.tasks)} tasks"
        if dry_run:
            print(f"would submit {words}")
            continue
        try:
            job = submit(submission, number, array, profile)
        except RunFailed as refusal:
            rest = sum(one.num_runs for one in arrays[number:])
            taken = sum(one.num_runs for one in arrays[:number])
            raise RunFailed(
                f"SLURM took {taken} runs and refused the next {array.num_runs}: {refusal}; "
                f"{rest} are left to the next launch"
            ) from None
        print(f"submitted {words} as job {job}", flush=True)


def _adopt(results: Path) -> None:
    """Arrays of an earlier launch that was killed between sbatch and its own notes."""
    unnoted = [s for s in submissions(results) if any(s.job(n) is None for n in range(len(s.arrays)))]
    if not unnoted:
        return
    from nora.launch.submit import adopt

    queued = slurm.queue()
    for submission in unnoted:
        for job in adopt(submission, queued):
            print(f"job {job} is of a launch that was cut short; taken over, not submitted again", flush=True)

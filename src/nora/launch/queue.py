"""What SLURM holds of our runs, laid over what the store knows; a run's logs, why it is in its state, cancelling it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nora.errors import UserError
from nora.files import Json
from nora.launch import slurm
from nora.launch.submission import Submission, submissions
from nora.store.attempt import Attempt
from nora.store.runs import Store, read_json_lines
from nora.store.states import RunState, State, run_state


@dataclass(frozen=True)
class Queue:
    """The tasks that SLURM still has, by run id, and every task's state by its id."""

    held: Mapping[str, slurm.Task] = field(default_factory=dict)
    tasks: Mapping[str, slurm.Task] = field(default_factory=dict)

    def job_is_alive(self, job: str) -> bool:
        """Whether SLURM still has a job."""
        return job in self.tasks and self.tasks[job].alive


def job_of(submission: Submission, number: int, tasks: Sequence[slurm.Task]) -> str | None:
    """An array's job number: as noted, or found by its unique name."""
    noted = submission.job(number)
    if noted is not None:
        return noted
    return next((task.job for task in tasks if task.name == submission.job_name(number)), None)


def read_queue(results: Path) -> Queue:
    """Asks SLURM once; RunFailed where it does not answer."""
    tasks = slurm.queue()
    by_job: dict[str, list[slurm.Task]] = {}
    for task in tasks:
        by_job.setdefault(task.job, []).append(task)
    held: dict[str, slurm.Task] = {}
    for submission in submissions(results):
        for number, array in enumerate(submission.arrays):
            job = job_of(submission, number, tasks)
            for task in by_job.get(job or "", ()):
                if task.alive and task.index is not None or task.alive and len(array["tasks"]) == 1:
                    for identity in array["tasks"][task.index or 0]:
                        held[identity] = task
    return Queue(held, {task.id: task for task in tasks})


def with_queue(state: RunState, store: Store, kind: str, identity: str, queue: Queue) -> RunState:
    """A run's state with what SLURM says: *queued* where it will run, *running* only where its job is alive."""
    if state.state in (State.DONE, State.DIVERGED):
        return state
    attempts = store.attempts(kind, identity)
    last = attempts[-1] if attempts else None
    job = last.owner().get("job") if last is not None else None
    task = queue.held.get(identity)
    if state.state is State.RUNNING:
        if job is None or (queue.job_is_alive(job) and queue.tasks[job].state != "PENDING"):
            return state
        if task is None:
            return RunState(State.FAILED, f"{state.reason}: SLURM has ended job {job}")
    if task is None:
        return state
    if state.state is State.FAILED and last is not None and last.failure() is not None and job == task.id:
        return state  # its job goes on with other runs
    after = f" after {state.reason}" if state.reason else ""
    return RunState(State.QUEUED, f"job {task.id} {task.state}{after}")


_TAIL = 15


def find_run(store: Store, beginning: str) -> tuple[str, str]:
    """(kind, id) of the only run, attempted or submitted, whose id starts so; UserError otherwise."""
    found = {(path.parent.name, path.name) for path in store.root.glob(f"runs/*/{beginning}*") if path.is_dir()}
    for submission in submissions(store.root):
        found |= {(r["spec"]["kind"], i) for i, r in submission.content["runs"].items() if i.startswith(beginning)}
    if len(found) != 1 or not beginning.isalnum():
        raise UserError(f"ID: given {beginning!r}, {len(found)} runs of {store.root} start with it; required one")
    return found.pop()


def _tasks_of(store: Store, identity: str) -> list[tuple[Submission, str]]:
    """Every (submission, SLURM task id) that a run was given to, oldest first."""
    found = []
    for submission in submissions(store.root):
        for number, array in enumerate(submission.arrays):
            job = submission.job(number)
            for index, ids in enumerate(array["tasks"]):
                if job is not None and identity in ids:
                    found.append((submission, job if len(array["tasks"]) == 1 else f"{job}_{index}"))
    return sorted(found, key=lambda pair: (pair[0].folder / "submission.json").stat().st_mtime)


def _log_files(submission: Submission, task: str) -> list[Path]:
    return sorted((submission.folder / "log").glob(f"{task}_0_log.*"))


def _tail(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]


def logs(store: Store, beginning: str) -> dict[str, Json]:
    """Where a run's logs are (its newest attempt's journal, its newest job's output) and how they end."""
    kind, identity = find_run(store, beginning)
    paths = [attempt.journal for attempt in store.attempts(kind, identity)[-1:]]
    for submission, task in _tasks_of(store, identity)[-1:]:
        paths += _log_files(submission, task)
    return {"id": identity, "logs": [{"path": str(path), "tail": _tail(path)} for path in paths]}


def logs_text(found: dict[str, Json]) -> str:
    """``logs`` for a terminal."""
    lines = []
    for log in found["logs"]:
        lines += [f"{log['path']}:", *(f"  {line}" for line in log["tail"] or ["(empty)"])]
    return "\n".join(lines) or f"run {found['id']}: nothing was logged yet"


def _ending(attempt: Attempt) -> str:
    error, stopped = attempt.failure(), attempt.interruption()
    if error is not None:
        return f"failed: {error}"
    if stopped is not None:
        return stopped
    if (attempt.path / "finished").exists():
        return "published its record"
    return "running" if attempt.is_alive() else "ended without a word (killed, node lost, or out of memory)"


def why(store: Store, beginning: str, queue: Queue | None) -> dict[str, Json]:
    """A run's state, the reason, its attempts and its SLURM jobs."""
    kind, identity = find_run(store, beginning)
    state = run_state(store, kind, identity)
    if queue is not None:
        state = with_queue(state, store, kind, identity, queue)
    attempts = []
    for attempt in store.attempts(kind, identity):
        journal = read_json_lines(attempt.journal)
        owner = attempt.owner()
        attempts.append(
            {
                "attempt": attempt.number,
                "host": owner.get("host"),
                "job": owner.get("job"),
                "phase": journal[-1]["phase"] if journal else "setup",
                "step": journal[-1]["step"] if journal else 0,
                "total": journal[-1]["total"] if journal else None,
                "end": _ending(attempt),
                "folder": str(attempt.path),
            }
        )
    jobs = []
    for submission, task in _tasks_of(store, identity):
        known = queue.tasks.get(task) if queue is not None else None
        said = known.state if known is not None else (slurm.accounted(task) or "unknown to SLURM by now")
        jobs.append({"job": task, "submission": submission.id, "state": said})
    return {"id": identity, "state": state.state, "reason": state.reason, "attempts": attempts, "jobs": jobs}


def why_text(found: dict[str, Json]) -> str:
    """``why`` for a terminal."""
    lines = [f"run {found['id']}: {found['state']}{': ' if found['reason'] else ''}{found['reason']}"]
    for a in found["attempts"]:
        where = f"{a['host']}{', job ' + a['job'] if a['job'] else ''}"
        lines.append(f"  attempt {a['attempt']} ({where}), {a['phase']} {a['step']}/{a['total'] or '?'}: {a['end']}")
    lines += [f"  job {j['job']} (submission {j['submission']}): {j['state']}" for j in found["jobs"]]
    for a in found["attempts"][-1:]:
        path = Path(a["folder"]) / "failed.json"
        if path.is_file():
            detail = json.loads(path.read_text()).get("detail", "")
            lines += [f"    {line}" for line in detail.strip().splitlines()[-_TAIL:]]
    return "\n".join(lines)


def cancel(store: Store, ids: set[str], queue: Queue, *, dry_run: bool) -> list[str]:
    """scancels the tasks that hold these runs; a task that also holds others is named and left. Returns what it did."""
    shared: dict[str, set[str]] = {}
    for identity, task in queue.held.items():
        shared.setdefault(task.id, set()).add(identity)
    lines: list[str] = []
    given: list[str] = []
    for name, held in sorted(shared.items()):
        if not held & ids:
            continue
        foreign = {
            i
            for i in held - ids
            if run_state(store, find_run(store, i)[0], i).state not in (State.DONE, State.DIVERGED)
        }
        if foreign:
            lines.append(f"job {name} left: it also holds {', '.join(sorted(foreign))}")
            continue
        given.append(name)
        lines.append(f"job {name} {'would be ' if dry_run else ''}cancelled: {', '.join(sorted(held & ids))}")
    if given and not dry_run:
        slurm.cancel(given)
    return lines

"""What SLURM holds of our runs, laid over what the store knows. Our own markers come first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nora.launch import slurm
from nora.launch.submission import Submission, submissions
from nora.runs.store import RunState, Store


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
    if state.state in ("done", "diverged"):
        return state
    attempts = store.attempts(kind, identity)
    last = attempts[-1] if attempts else None
    job = last.owner().get("job") if last is not None else None
    task = queue.held.get(identity)
    if state.state == "running":
        if job is None or (queue.job_is_alive(job) and queue.tasks[job].state != "PENDING"):
            return state
        if task is None:
            return RunState("failed", f"{state.reason}: SLURM has ended job {job}")
    if task is None:
        return state
    if state.state == "failed" and last is not None and last.failure() is not None and job == task.id:
        return state  # its job goes on with other runs
    after = f" after {state.reason}" if state.reason else ""
    return RunState("queued", f"job {task.id} {task.state}{after}")

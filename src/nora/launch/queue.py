"""What SLURM holds of our runs, laid over what the store knows; a run's logs, why it is in its state, cancelling it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nora.errors import UserError
from nora.files import Json
from nora.launch import slurm
from nora.launch.submission import Submission, submissions, unreadable
from nora.store.attempt import Attempt
from nora.store.runs import Store, read_json_lines
from nora.store.states import RunState, State, run_state

_MULTIRUN = "nora-multirun"


@dataclass(frozen=True)
class Queue:
    """What SLURM has of this store's jobs, whoever owns them."""

    held: Mapping[str, slurm.Task] = field(default_factory=dict)
    """By run id, the tasks that run or will."""
    tasks: Mapping[str, slurm.Task] = field(default_factory=dict)
    """By its id, every task that is ours by name."""
    ended: Mapping[str, str] = field(default_factory=dict)
    """By run id, the task that this cluster took and no longer has."""
    hidden: Mapping[str, slurm.Task] = field(default_factory=dict)
    """By run id, the task it was last given to, where that is somebody else's and the site does not show it."""
    lost: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)
    """Submissions whose content is lost, with their jobs that run or will."""
    cluster: str = ""

    def lost_lines(self) -> list[str]:
        """One line per submission of ``lost`` that has such jobs: nothing may be submitted beside them."""
        return [
            f"{folder}: damaged, and SLURM has its jobs (found by name); which runs they hold is lost, so nothing is "
            f"submitted beside them: scancel {' '.join(jobs)}, then launch again"
            for folder, jobs in self.lost.items()
            if jobs
        ]

    def runs(self, attempt: Attempt) -> bool:
        """Whether the attempt's job is running, by SLURM's word."""
        owner = attempt.owner()
        task = self.tasks.get(str(owner.get("job")))
        return (
            task is not None
            and task.alive
            and task.state != "PENDING"
            and owner.get("job_name", task.name) == task.name
            and owner.get("cluster", self.cluster) == self.cluster
        )

    def knows(self, attempt: Attempt) -> bool:
        """Whether a job that is not in the queue has ended: this cluster's, and one's own. (A site may show nobody's
        but one's own.)"""
        own = attempt.path.stat().st_uid == os.getuid()
        return own and attempt.owner().get("cluster", self.cluster) == self.cluster


def read_queue(results: Path) -> Queue:
    """Asks SLURM about everybody who submitted from this store; RunFailed where it does not answer."""
    found, damaged = submissions(results), unreadable(results)
    here, me, private = slurm.cluster(), slurm.this_user(), slurm.hides_jobs()
    by_name: dict[str, list[slurm.Task]] = {}
    for task in slurm.queue(_users([one.folder for one in found] + damaged)):
        by_name.setdefault(task.name, []).append(task)
    ours = {task.id: task for task in by_name.get(_MULTIRUN, ())}
    held: dict[str, slurm.Task] = {}
    ended: dict[str, str] = {}
    last: dict[str, slurm.Task] = {}
    for submission in found:
        for number, array in enumerate(submission.arrays):
            note = submission.note(number)
            own = {t.id: t for t in by_name.get(submission.job_name(number), ()) if _agrees(t, note, here)}
            ours |= own
            job = note.get("job") or next((task.job for task in own.values()), None)
            for index, ids in enumerate(array["tasks"]):
                name = f"{job}" if len(array["tasks"]) == 1 else f"{job}_{index}"
                if name in own and own[name].alive:
                    held |= dict.fromkeys(ids, own[name])
                elif note.get("cluster") == here and note.get("user") == me:
                    ended |= dict.fromkeys(ids, name)
                if private and note.get("cluster") == here and str(job).isdigit():
                    place = None if len(array["tasks"]) == 1 else index
                    task = slurm.Task(str(job), place, "hidden", submission.job_name(number), "", note.get("user", ""))
                    last |= {i: task for i in ids if i not in last or int(last[i].job) < int(task.job)}
    lost = {folder: _jobs_of(folder, by_name) for folder in damaged}
    return Queue(held, ours, ended, {i: task for i, task in last.items() if task.user != me}, lost, here)


def _hidden(task: slurm.Task) -> str:
    """What can be said of somebody else's job where the site shows one's own alone."""
    return (
        f"job {task.id} is {task.user}'s and this site shows nobody else's jobs: {task.user}'s launch knows whether it "
        f"has ended (without {task.user}: remove submissions/{task.name.rsplit('-', 2)[-2]})"
    )


def _agrees(task: slurm.Task, note: Mapping[str, str], cluster: str) -> bool:
    """Whether a task of an array's name, which no other submission has, is what was written down of the array."""
    given = {"job": task.job, "cluster": cluster, "user": task.user}
    return all(note.get(key, value) == value for key, value in given.items())


def _jobs_of(folder: Path, by_name: Mapping[str, Sequence[slurm.Task]]) -> tuple[str, ...]:
    """The jobs of a submission that run or will, by the id in their name."""
    named = [task for name, tasks in by_name.items() if f"-{folder.name}-" in name for task in tasks]
    return tuple(sorted({task.job for task in named if task.alive}))


def _users(folders: Sequence[Path]) -> set[str]:
    """Who has submitted from this store, as far as this machine knows them (squeue refuses a name it does not know)."""
    users = set()
    for owner in {folder.stat().st_uid for folder in folders}:
        with suppress(KeyError):
            users.add(pwd.getpwuid(owner).pw_name)
    return users


def with_queue(state: RunState, store: Store, kind: str, identity: str, queue: Queue) -> RunState:
    """A run's state with what SLURM says: *queued* where it will run, *running* only where its job is alive; one whose
    job ended before it began (cancelled, say) is *interrupted*."""
    if state.state in (State.DONE, State.DIVERGED, State.NEWER):
        return state
    attempts = store.attempts(kind, identity)
    last = attempts[-1] if attempts else None
    job = last.owner().get("job") if last is not None else None
    task = queue.held.get(identity)
    if state.state is State.RUNNING and last is not None:
        if job is None or queue.runs(last):
            return state
        if task is None:
            gone = RunState(State.FAILED, f"{state.reason}: SLURM has ended job {job}")
            return gone if queue.knows(last) else state
    if task is None:
        unseen = queue.hidden.get(identity)
        if unseen is not None and not (last is not None and last.failure() is not None and job == unseen.id):
            return RunState(State.QUEUED, f"as far as is known: {_hidden(unseen)}")
        if state.state is State.MISSING and identity in queue.ended:
            return RunState(State.INTERRUPTED, f"job {queue.ended[identity]} ended before the run began")
        return state
    if state.state is State.FAILED and last is not None and last.failure() is not None and job == task.id:
        return state  # its job goes on with other runs
    if task.state == "RUNNING" and last is not None and state.state is not State.INTERRUPTED and queue.runs(last):
        return RunState(State.RUNNING, f"attempt {last.number}, job {task.id} RUNNING")  # its heartbeat is late
    after = f" after {state.reason}" if state.reason else ""
    return RunState(State.QUEUED, f"job {task.id} {task.said}{after}")


_TAIL = 15


def find_run(store: Store, beginning: str) -> tuple[str, str]:
    """(kind, id) of the only run, attempted or submitted, whose id starts so; UserError otherwise."""
    found = {(path.parent.name, path.name) for path in store.root.glob(f"runs/*/{beginning}*") if path.is_dir()}
    for submission in submissions(store.root):
        found |= {(r["spec"]["kind"], i) for i, r in submission.content["runs"].items() if i.startswith(beginning)}
    if len(found) != 1 or not beginning.isalnum():
        listed = "; ".join([*sorted(identity for _, identity in found)[:5], *(["…"] if len(found) > 5 else [])])
        raise UserError(
            f"ID: given {beginning!r}, {len(found)} runs of {store.root} start with it; required one"
            f"{': ' if found else ''}{listed}"
        )
    return found.pop()


def _tasks_of(store: Store, identity: str) -> list[tuple[Submission, int, str]]:
    """Every (submission, number of the array, SLURM task id) that a run was given to, oldest first."""
    found = []
    for submission in submissions(store.root):
        for number, array in enumerate(submission.arrays):
            job = submission.job(number)
            for index, ids in enumerate(array["tasks"]):
                if job is not None and identity in ids:
                    found.append((submission, number, job if len(array["tasks"]) == 1 else f"{job}_{index}"))
    return sorted(found, key=lambda one: (one[0].folder / f"array-{one[1]}.json").stat().st_mtime)


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
    for submission, _, task in _tasks_of(store, identity)[-1:]:
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
    for submission, number, task in _tasks_of(store, identity):
        note = submission.note(number)
        known = queue.tasks.get(task) if queue is not None else None
        if known is not None:
            said = known.said
        elif queue is not None and any(unseen.id == task for unseen in queue.hidden.values()):
            said = f"{note['user']}'s; this site shows nobody else's jobs"
        elif queue is not None and note.get("cluster", queue.cluster) != queue.cluster:
            said = f"of the cluster {note['cluster']}; this is {queue.cluster}"
        else:
            said = slurm.accounted(task, submission.job_name(number)) or "unknown to SLURM by now"
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
        lines += [f"    {line}" for line in Attempt(Path(a["folder"])).detail().strip().splitlines()[-_TAIL:]]
    return "\n".join(lines)


def _published(store: Store, identity: str) -> bool:
    return run_state(store, find_run(store, identity)[0], identity).state in (State.DONE, State.DIVERGED, State.NEWER)


def cancel(store: Store, ids: set[str], queue: Queue, *, dry_run: bool) -> list[str]:
    """scancels the tasks that hold these runs; a task that also holds others is named and left. Returns what it did."""
    shared: dict[str, set[str]] = {}
    for identity, task in queue.held.items():
        shared.setdefault(task.id, set()).add(identity)
    unseen = {task.id: task.user for i, task in queue.hidden.items() if i in ids and not _published(store, i)}
    lines = [f"job {name} left: it is {user}'s" for name, user in sorted(unseen.items())]
    given: list[str] = []
    for name, held in sorted(shared.items()):
        if not held & ids:
            continue
        foreign = {i for i in held - ids if not _published(store, i)}
        (owner,) = {task.user for task in queue.held.values() if task.id == name}
        if owner != slurm.this_user():
            lines.append(f"job {name} left: it is {owner}'s")
            continue
        if foreign:
            lines.append(f"job {name} left: it also holds {', '.join(sorted(foreign))}")
            continue
        given.append(name)
        lines.append(f"job {name} {'would be ' if dry_run else ''}cancelled: {', '.join(sorted(held & ids))}")
    if given and not dry_run:
        slurm.cancel(given)
    return lines

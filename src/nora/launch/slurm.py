"""Questions and orders to SLURM's own commands, and what their answers mean. Nothing is guessed from an error."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from nora.errors import RunFailed, UserError

# States in which SLURM still has the job: it runs, will run, or will run again.
ALIVE = frozenset(
    "PENDING RUNNING CONFIGURING COMPLETING SUSPENDED REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING RESV_DEL_HOLD "
    "SPECIAL_EXIT SIGNALING STAGE_OUT STOPPED".split()
)
_SECONDS = 60


@dataclass(frozen=True)
class Task:
    """One task of an array (or a plain job, ``index`` None) as the controller knows it."""

    job: str
    index: int | None
    state: str
    name: str
    reason: str

    @property
    def id(self) -> str:
        return self.job if self.index is None else f"{self.job}_{self.index}"

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


def installed() -> bool:
    """Whether SLURM's client commands are here."""
    return all(shutil.which(command) for command in ("sbatch", "squeue", "srun"))


def call(*command: str) -> str:
    """Standard output of a SLURM command; RunFailed with its own words where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found; this is no machine of a SLURM cluster") from None
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{command[0]}: no answer within {_SECONDS} s") from None
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split())
        raise RunFailed(f"{command[0]}: {words or f'exit code {done.returncode}'}")
    return done.stdout


def queue() -> list[Task]:
    """Every job of this user that the controller remembers, in one call; RunFailed where it does not answer."""
    lines = call("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%F|%K|%T|%j|%r").splitlines()
    tasks = []
    for line in lines:
        job, index, state, name, reason = line.split("|", 4)
        tasks.append(Task(job, None if index == "N/A" else int(index), state, name, reason))
    return tasks


def accounted(job: str) -> str | None:
    """A job's last state as accounting has it, None where there is no accounting or it does not know the job."""
    if shutil.which("sacct") is None:
        return None
    try:
        lines = call("sacct", "-o", "JobID,State,NodeList", "--parsable2", "-j", job).splitlines()
    except RunFailed:
        return None
    for line in lines[1:]:
        identity, state = line.split("|")[:2]
        if identity == job and state:
            return state.split()[0]
    return None


def test_only(script: str) -> str:
    """Asks SLURM whether it would take a script; nothing is queued. UserError with its answer where it would not."""
    done = subprocess.run(
        ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    words = " ".join(done.stderr.split())
    if done.returncode != 0:
        raise UserError(f"sbatch --test-only refuses: {words.removeprefix('sbatch: ')}")
    return words


def cancel(ids: Sequence[str]) -> None:
    """scancel, some hundred ids at a time."""
    for start in range(0, len(ids), 200):
        call("scancel", *ids[start : start + 200])


def requeue(job: str) -> None:
    """Puts a running job back into the queue under its own number."""
    call("scontrol", "requeue", job)


def max_array_size() -> int | None:
    """MaxArraySize of the cluster, None where it cannot be asked."""
    if shutil.which("scontrol") is None:
        return None
    for line in call("scontrol", "show", "config").splitlines():
        if line.split("=")[0].strip() == "MaxArraySize":
            return int(line.split("=")[1])
    return None

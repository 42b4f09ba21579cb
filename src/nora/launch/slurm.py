"""Questions and orders to SLURM's own commands, and what their answers mean. Nothing is guessed from an error."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nora.errors import RunFailed, UserError
from nora.store.attempt import Job

# States in which SLURM still has the job: it runs, will run, or will run again.
ALIVE = frozenset(
    "PENDING RUNNING CONFIGURING COMPLETING SUSPENDED REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING RESV_DEL_HOLD "
    "SPECIAL_EXIT SIGNALING STAGE_OUT STOPPED".split()
)
SECONDS = 60
"""How long a command of SLURM's may take."""


@dataclass(frozen=True)
class Task:
    """One task of an array (or a plain job, ``index`` None) as the controller knows it."""

    job: str
    index: int | None
    state: str
    name: str
    reason: str
    user: str = ""

    @property
    def said(self) -> str:
        """Its state, and why it is in it where the controller gives a reason."""
        return f"{self.state} ({self.reason})" if self.reason not in ("", "None") else self.state

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
    """Standard output of a SLURM command; RunFailed with its own words where it fails, UserError where it is not there
    or knows no cluster (client packages alone: there is no slurm.conf)."""
    try:
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found; this is no machine of a SLURM cluster") from None
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{command[0]}: no answer within {SECONDS} s") from None
    if done.returncode != 0:
        own = re.compile(rf"^{command[0]}: (error: |fatal: )?", re.MULTILINE)
        words = " ".join(own.sub("", done.stderr or done.stdout).split())
        if re.search(r"(establish a configuration source|process configuration file)$", words):
            raise UserError(f"{command[0]}: installed, without a slurm.conf; this is no machine of a SLURM cluster")
        raise RunFailed(f"{command[0]}: {words or f'exit code {done.returncode}'}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Without a person's own defaults: SQUEUE_PARTITION, SQUEUE_ACCOUNT and their like would hide jobs."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SINFO_"))}


def this_job(number: str) -> Job:
    """The job that this process is in, as SLURM tells it."""
    return Job(number, os.environ.get("SLURM_JOB_NAME", ""), os.environ.get("SLURM_CLUSTER_NAME", ""))


def this_user() -> str:
    """The name by which SLURM knows who asks."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def queue(users: Iterable[str] = ()) -> list[Task]:
    """Every job of this user, and of ``users``, that the controller remembers, hidden partitions included, in one call;
    RunFailed where it does not answer."""
    asked = ",".join(sorted({str(os.getuid()), *users}))
    lines = call("squeue", "-h", "-r", "-a", "-t", "all", "-u", asked, "-o", "%F|%K|%T|%u|%r|%j").splitlines()
    tasks = []
    for line in lines:
        job, index, state, user, reason, name = line.split("|", 5)
        tasks.append(Task(job, None if index == "N/A" else int(index), state, name, reason, user))
    return tasks


def cluster() -> str:
    """The name of the cluster that answers here, "" where it has none."""
    return _setting("ClusterName") or ""


def hides_jobs() -> bool:
    """Whether the site shows a person nobody else's jobs."""
    return os.getuid() != 0 and "jobs" in (_setting("PrivateData") or "")


def _setting(name: str) -> str | None:
    for line in call("scontrol", "show", "config").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == name:
            return value.strip()
    return None


def accounted(job: str, name: str) -> str | None:
    """The last state of the job of that number and name as accounting has it, None where there is no accounting or it
    does not know such a job."""
    if shutil.which("sacct") is None:
        return None
    try:
        lines = call("sacct", "-o", "JobID,State,NodeList,JobName", "--parsable2", "-j", job).splitlines()
    except (RunFailed, UserError):
        return None
    for line in lines[1:]:
        identity, state, _, given = line.split("|", 3)
        if identity == job and given == name and state:
            return state.split()[0]
    return None


def test_only(script: str, partition: str | None = None) -> str:
    """Asks SLURM whether it would take a script; nothing is queued. "" where it would, UserError with its answer where
    it would not, RunFailed where it gives none or takes nothing for now. Where nodes are drained or down its answer is
    returned: then it says the same of what is never there and of what is not there now, and sbatch alone knows them
    apart."""
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"sbatch --test-only: no answer within {SECONDS} s; nothing was submitted") from None
    if done.returncode == 0:
        return ""
    words = " ".join(done.stderr.split()).removeprefix("sbatch: ")
    if "temporarily" in words:  # as many jobs as it keeps, say: of now, not of the script
        raise RunFailed(f"sbatch --test-only: {words}; nothing was submitted, launch again later")
    if "not available" in words and (away := _nodes_away(partition)):
        return f"sbatch --test-only: {words} ({away} nodes are down or drained)"
    raise UserError(f"sbatch --test-only refuses: {words}")


def _nodes_away(partition: str | None) -> int:
    """How many nodes can take nothing now (unknown: the controller has just started)."""
    where = [] if partition is None else ["-p", partition]
    states = call("sinfo", "-h", "-N", "-o", "%N %T", *where).split("\n")
    return len({line.split()[0] for line in states if re.search(r"down|drain|\*$|fail|maint|inval|unk", line)})


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
    value = _setting("MaxArraySize")
    return None if value is None else int(value)

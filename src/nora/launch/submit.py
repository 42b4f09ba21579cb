"""Arrays → SLURM, through submitit: the job script, the payload, sbatch. The only file that imports submitit."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CalledProcessError

import submitit
from submitit.core import utils
from submitit.slurm.slurm import SlurmExecutor

from nora.errors import RunFailed
from nora.launch import slurm
from nora.launch.profile import Profile
from nora.launch.submission import Array, Submission

_UNBOUNDED = 1_000_000  # requeues; ours are counted by failures, not by starts
logging.getLogger("submitit").setLevel(logging.WARNING)


class RunTask:
    """The payload of one array task: a folder and run ids; everything else is read from disk on the node."""

    def __init__(self, folder: str, ids: Sequence[str]) -> None:
        self.folder = folder
        self.ids = tuple(ids)

    def __call__(self) -> None:
        from nora.launch.worker import work

        work(Path(self.folder), self.ids, job=submitit.JobEnvironment().job_id)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """For a USR2 that comes before the worker listens: again from disk."""
        return submitit.helpers.DelayedSubmission(self)


class _Executor(SlurmExecutor):
    """SlurmExecutor that can also write its script on a machine without SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def text(self, tasks: int) -> str:
        """The script of an array of this many tasks."""
        parameters = {**self.parameters, **({"map_count": tasks} if tasks > 1 else {})}
        saved, self.parameters = self.parameters, parameters
        try:
            return str(self._make_submission_file_text(self._submitit_command_str, "script"))
        finally:
            self.parameters = saved


def _bounded(executor: SlurmExecutor, submission_file_path: Path) -> list[str]:
    """sbatch asks a controller that is full again for two minutes, without a word and deaf to TERM. What SLURM took all
    the same is found by its name."""
    return ["timeout", "--signal=KILL", str(slurm.SECONDS), "sbatch", str(submission_file_path)]


# Not in _Executor: submitit gives an array to a plain SlurmExecutor of its own.
SlurmExecutor._make_submission_command = _bounded  # type: ignore[method-assign, assignment]


def _executor(array: Array, profile: Profile, *, folder: Path, name: str, code: Path) -> _Executor:
    resources = array.resources
    executor = _Executor(folder, max_num_timeout=_UNBOUNDED)
    setup = [
        *profile.setup_lines(),
        f"export PYTHONPATH={shlex.quote(str(code / 'src'))}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"cd {shlex.quote(str(code))}",
    ]
    executor.update_parameters(
        job_name=name,
        time=resources.time_min,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=resources.cpus,
        mem=f"{int(resources.mem_gb * 1024)}MB",
        signal_delay_s=profile.signal_delay_s,
        array_parallelism=profile.parallel,
        setup=setup,
        # srun in a batch job does not take over --cpus-per-task from 22.05 on
        srun_args=[f"--cpus-per-task={resources.cpus}"],
        **profile.sbatch_options(resources.gpus),
    )
    return executor


def script(array: Array, profile: Profile, *, folder: Path, name: str, code: Path) -> str:
    """The job script of an array, exactly as it would be given to sbatch."""
    return _executor(array, profile, folder=folder / "log", name=name, code=code).text(len(array.tasks))


def submit(submission: Submission, number: int, array: Array, profile: Profile) -> str:
    """Gives an array to sbatch and notes its job number; returns it. RunFailed where SLURM does not take it."""
    folder = submission.folder / "log"
    folder.mkdir(exist_ok=True)  # sbatch fails silently where its log folder is not there
    executor = _executor(
        array, profile, folder=folder, name=submission.job_name(number), code=Path(submission.content["code"])
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said, executor.batch():
            jobs = [executor.submit(RunTask(str(submission.folder), ids)) for ids in array.tasks]
    except utils.FailedJobError as error:
        given_up = isinstance(error.__cause__, CalledProcessError) and error.__cause__.returncode in (-9, 137)
        words = [*str(error).split(), *([f"(given up after {slurm.SECONDS} s)"] if given_up else [])]
        raise RunFailed(" ".join(words)) from None
    print(said.getvalue(), end="", file=sys.stderr)
    job = str(jobs[0].job_id).split("_")[0]
    submission.write_job(number, job)
    return job


def adopt(submission: Submission, queued: Sequence[slurm.Task]) -> list[str]:
    """Writes down the number of every array that SLURM has under a name of this submission and that was not noted:
    the launch was killed after sbatch. Puts the payloads in place; returns the numbers."""
    adopted = []
    for number, array in enumerate(submission.arrays):
        if submission.job(number) is not None:
            continue
        job = next((task.job for task in queued if task.name == submission.job_name(number) and task.alive), None)
        if job is None:
            continue
        for index, ids in enumerate(array["tasks"]):
            own = job if len(array["tasks"]) == 1 else f"{job}_{index}"
            path = utils.JobPaths(submission.folder / "log", job_id=own, task_id=0).submitted_pickle
            if not path.exists():
                delayed = utils.DelayedSubmission(RunTask(str(submission.folder), ids))
                delayed.set_timeout(array["resources"]["time_min"], _UNBOUNDED)
                with utils.temporary_save_path(path) as temporary:
                    delayed.dump(temporary)
        submission.write_job(number, job)
        adopted.append(job)
    return adopted

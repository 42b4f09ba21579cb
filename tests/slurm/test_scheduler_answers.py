"""What else a scheduler answers: each is one line, nothing is lost, and the next launch goes on."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from testbed import STAGE_1, Testbed, ends_identically, hold, launch_and_wait_for_step

from nora import cli
from nora.launch.submission import submissions
from nora.store.states import run_state
from slurm_testbed import configured, controller_lives, restart_controller

pytestmark = pytest.mark.slurm
Out = pytest.CaptureFixture[str]
ONE = ["task=cb", "seed=0", "method=lora"]


def _sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An sbatch before the real one."""
    folder.mkdir()
    path = folder / "sbatch"
    path.write_text(f"#!/usr/bin/env bash\nreal={shutil.which('sbatch')}\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


THREE_ARRAYS = ["task=cb,sst2,rte", "seed=0,1", "method=lora", "exec.max_array_size=2"]


@pytest.mark.parametrize(
    ("conf", "refusal"),
    [
        # The controller counts a person's calls, here three questions and a submission; its error is a QOS limit's.
        ("JobSubmitPlugins=throttle\nSchedulerParameters=jobs_per_user_per_hour={calls}",
         "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"),
        # It is full: sbatch says nothing, waits and asks again for two minutes.
        ("MaxJobCount={records}", "temporarily unable to accept job, sleeping and retrying (given up after 5 s)"),
    ],
    ids=["a QOS limit", "a full controller"],
)  # fmt: skip
def test_a_submit_limit_in_the_middle(
    slurm: Testbed, conf: str, refusal: str, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller takes the first of three arrays; when the limit is gone the next launch submits the other two."""
    hold(slurm)
    before = slurm.submitted()
    with configured(slurm.folder, conf.format(calls=4, records=before + 4)), monkeypatch.context() as patch:
        patch.setattr("nora.launch.slurm.SECONDS", 5)  # what follows has the time it has: a busy machine is slow
        assert slurm.nora("launch", *THREE_ARRAYS) == 1
        out, err = capsys.readouterr()
        assert out.count("submitted 2 runs") == 1 and err.count("\n") == 1, (out, err)
        assert "SLURM took 2 runs and refused the next 2" in err and refusal in err, err
        assert "4 are left to the next launch" in err and slurm.submitted() - before == 2
        assert slurm.nora("launch", *THREE_ARRAYS) in (1, 2) and slurm.submitted() - before == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert slurm.nora("launch", *THREE_ARRAYS) == 0 and slurm.submitted() - before == 6, capsys.readouterr().err
    assert slurm.nora("launch", *THREE_ARRAYS) == 0 and slurm.submitted() - before == 6
    assert "nothing to submit: " in capsys.readouterr().out


def test_a_question_that_is_never_answered(
    slurm: Testbed, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(slurm)
    before = slurm.submitted()
    with monkeypatch.context() as patch:
        _sbatch(tmp_path / "bin", patch, 'case "$*" in *--test-only*) exec sleep 600;; esac; exec $real "$@"')
        patch.setattr("nora.launch.slurm.SECONDS", 4)
        assert slurm.nora("launch", *ONE) == 1
    err = capsys.readouterr().err
    assert err == "nora: sbatch --test-only: no answer within 4 s; nothing was submitted\n"
    assert slurm.submitted() == before
    assert slurm.nora("launch", *ONE) == 0 and slurm.submitted() == before + 1


def _numbers(slurm: Testbed) -> set[str]:
    return {identity.split("_")[0] for identity, _ in slurm.jobs()}


def test_a_controller_that_has_crashed(slurm: Testbed, capsys: Out) -> None:
    """It does crash by itself now and then (a segmentation fault of SLURM's own). One line; what it had queued is there
    when it is started again, and the next launch submits nothing twice."""
    hold(slurm)
    assert slurm.nora("launch", *ONE) == 0
    now, saved = time.time(), slurm.folder / "state" / "job_state"
    (waiting,) = [identity for identity, state in slurm.jobs() if state == "PENDING"]
    known = _numbers(slurm)
    slurm.wait(lambda: saved.is_file() and saved.stat().st_mtime > now)  # what it has not written down it forgets
    os.kill(int((slurm.folder / "run" / "slurmctld.pid").read_text()), signal.SIGKILL)
    slurm.wait(lambda: not controller_lives(slurm.folder))
    try:
        capsys.readouterr()
        assert slurm.nora("launch", *ONE) == 1
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and "Unable to contact slurm controller" in err, (out, err)
    finally:
        restart_controller(slurm.folder)
    assert slurm.nora("launch", *ONE) == 0
    # It may have begun: a controller that starts anew takes its partitions from slurm.conf, where they are up.
    assert waiting.split("_")[0] in _numbers(slurm) and _numbers(slurm) <= known, "that very job, and no other"


def test_all_nodes_drained(slurm: Testbed, capsys: Out) -> None:
    """sbatch takes the job and it waits; so does launch, and says so."""
    slurm.ask("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=maintenance")
    try:
        assert slurm.nora("launch", *ONE) == 0
        out, err = capsys.readouterr()
        assert (
            "submitted 1 runs" in out
            and "(2 nodes are down or drained): submitted all the same, to wait" in err
            and err.count("\n") == 1
        ), err
        assert slurm.states()["PENDING"] == 1
        assert slurm.nora("launch", *ONE, "exec.runs_per_task=2") == 0 and slurm.states()["PENDING"] == 1
    finally:
        slurm.ask("scontrol", "update", "nodename=n[1-2]", "state=resume")
        slurm.wait(lambda: slurm.ask("sinfo", "-h", "-p", "gpu", "-t", "drain,down", "-o", "%n") == "")
    slurm.wait(slurm.idle)
    assert slurm.nora("launch", *ONE) == 0
    assert "nothing to submit: 1 done" in capsys.readouterr().out


def test_a_held_job_says_so(slurm: Testbed, capsys: Out) -> None:
    hold(slurm)
    assert slurm.nora("launch", *ONE) == 0
    (submission,) = submissions(slurm.results)
    job = str(submission.job(0))
    slurm.ask("scontrol", "uhold", job)
    (identity,) = submission.content["runs"]
    capsys.readouterr()
    assert cli.main(["why", identity, f"exec.results={slurm.results}"]) == 0
    assert capsys.readouterr().out.count(f"job {job} PENDING (JobHeldUser)") == 1
    assert slurm.nora("plan", *ONE) == 0
    assert f"job {job} PENDING (JobHeldUser)" in capsys.readouterr().out


def test_a_submission_cut_short_is_told_from_its_copy(slurm: Testbed, capsys: Out) -> None:
    hold(slurm)
    before = slurm.submitted()
    assert slurm.nora("launch", *ONE) == 0
    (path,) = slurm.results.glob("submissions/*/submission.json")
    path.write_text(path.read_text()[:200])
    assert slurm.nora("launch", *ONE) == 0
    assert "nothing to submit: 1 queued" in capsys.readouterr().out and slurm.submitted() == before + 1
    slurm.ask("scontrol", "update", "partition=gpu", "state=up")
    slurm.wait(slurm.idle)
    assert slurm.nora("launch", *ONE) == 0
    assert "nothing to submit: 1 done" in capsys.readouterr().out, "the node read the copy too"


def test_a_submission_whose_content_is_lost_is_never_submitted_twice(slurm: Testbed, capsys: Out) -> None:
    """Its job is found by name; nothing is submitted beside it."""
    hold(slurm)
    before = slurm.submitted()
    assert slurm.nora("launch", *ONE) == 0
    (submission,) = submissions(slurm.results)
    for name in ("submission.json", "submission.copy.json"):
        (submission.folder / name).write_text("{")
    capsys.readouterr()
    assert slurm.nora("launch", *ONE) == 1 and slurm.submitted() == before + 1
    err = capsys.readouterr().err
    assert f"scancel {submission.job(0)}, then launch again" in err and err.count("\n") == 1
    assert slurm.nora("plan", *ONE) == 0
    assert "found by name" in capsys.readouterr().err
    slurm.ask("scancel", str(submission.job(0)))
    slurm.wait(slurm.idle)
    assert slurm.nora("launch", *ONE) == 0 and slurm.submitted() == before + 2


def test_what_was_cancelled_before_it_began_is_retried(slurm: Testbed, capsys: Out) -> None:
    hold(slurm)
    assert slurm.nora("launch", *ONE) == 0 and slurm.nora("cancel", *ONE) == 0
    slurm.wait(slurm.idle)
    assert slurm.nora("plan", *ONE) == 0
    assert "ended before the run began" in capsys.readouterr().out
    assert slurm.nora("retry", *ONE) == 0
    assert "submitted 1 runs" in capsys.readouterr().out


def test_what_was_cancelled_while_it_ran_is_retried_from_its_state(slurm: Testbed, quiet: str) -> None:
    kind, identity = launch_and_wait_for_step(slurm, 30, "exec.checkpoint_every=1000")
    assert slurm.nora("cancel", *STAGE_1) == 0
    slurm.wait(slurm.idle)
    assert run_state(slurm.store, kind, identity).state == "interrupted"
    assert slurm.store.failures(kind, identity) == 0
    assert slurm.nora("retry", *STAGE_1) == 0
    ends_identically(slurm, kind, identity, quiet)

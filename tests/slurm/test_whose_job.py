"""A job is a number and a name and a cluster: a store that was moved neither shows nor cancels a stranger's job."""

from __future__ import annotations

import json

import pytest
from testbed import Testbed, hold

from nora import cli
from nora.files import write_atomic
from nora.launch.submission import Submission, submissions
from nora.store.attempt import Job

pytestmark = pytest.mark.slurm
Out = pytest.CaptureFixture[str]
WORDS = ["task=cb", "seed=0", "method=lora"]


def _moved(slurm: Testbed, number: str, **note: str) -> Submission:
    """A submission whose job has the number of another one here."""
    assert slurm.nora("launch", *WORDS) == 0
    (submission,) = submissions(slurm.results)
    slurm.ask("scancel", str(submission.job(0)))
    slurm.wait(lambda: (str(submission.job(0)), "CANCELLED") in [(j.split("_")[0], s) for j, s in slurm.jobs()])
    path = submission.folder / "array-0.json"
    write_atomic(path, json.dumps({**json.loads(path.read_text()), "job": number, **note}))
    return submission


def _strangers(slurm: Testbed, name: str) -> str:
    return slurm.ask("sbatch", "--parsable", "-J", name, "-p", "gpu", "-o", "/dev/null", "--wrap", "sleep 60").strip()


@pytest.mark.parametrize("note", [{}, {"cluster": "older"}], ids=["a cluster of the same name", "another cluster"])
def test_a_strangers_job_of_the_same_number_is_left_alone(slurm: Testbed, note: dict[str, str], capsys: Out) -> None:
    hold(slurm)
    number = _strangers(slurm, "thesis")
    submission = _moved(slurm, number, **note)
    capsys.readouterr()
    assert slurm.nora("status", *WORDS, "--json") == 0
    assert "queued" not in json.loads(capsys.readouterr().out)["table2"]
    (identity,) = submission.content["runs"]
    assert slurm.nora("cancel", *WORDS) == 0
    assert "nothing is queued" in capsys.readouterr().out
    assert (f"{number}_N/A", "PENDING") in slurm.jobs()
    assert cli.main(["why", identity, f"exec.results={slurm.results}"]) == 0
    out = capsys.readouterr().out
    assert "PENDING" not in out and ("cluster older" in out if note else "unknown to SLURM" in out)
    before = slurm.submitted()
    assert slurm.nora("launch", *WORDS) == 0 and slurm.submitted() == before + 1
    assert slurm.nora("cancel", *WORDS) == 0
    assert (f"{number}_N/A", "PENDING") in slurm.jobs()


@pytest.mark.parametrize("note", [{"cluster": "older"}, {"user": "somebody"}], ids=["cluster", "user"])
def test_number_and_name_are_no_witness_on_another_cluster(slurm: Testbed, note: dict[str, str], capsys: Out) -> None:
    hold(slurm)
    submission = _moved(slurm, "0")
    number = _strangers(slurm, submission.job_name(0))
    path = submission.folder / "array-0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "job": number}))
    capsys.readouterr()
    assert slurm.nora("status", *WORDS, "--json") == 0
    assert json.loads(capsys.readouterr().out)["table2"]["queued"] == 1, "as noted it would be this array's"
    path.write_text(json.dumps({**json.loads(path.read_text()), **note}))
    assert slurm.nora("status", *WORDS, "--json") == 0
    assert "queued" not in json.loads(capsys.readouterr().out)["table2"]


def test_an_attempt_is_not_running_because_a_strangers_job_is(slurm: Testbed, capsys: Out) -> None:
    """Its own markers decide: it ended without a word."""
    number = _strangers(slurm, "thesis")
    slurm.wait(lambda: (f"{number}_N/A", "RUNNING") in slurm.jobs())
    hold(slurm)
    submission = _moved(slurm, number)
    ((identity, entry),) = submission.content["runs"].items()
    attempt = slurm.store.new_attempt(
        entry["spec"]["kind"], identity, job=Job(number, submission.job_name(0), "testbed")
    )
    owner = attempt.owner()
    write_atomic(attempt.path / "owner.json", json.dumps({**owner, "host": "a-node"}))
    capsys.readouterr()
    assert slurm.nora("status", *WORDS, "--json") == 0
    assert json.loads(capsys.readouterr().out)["table2"] == {"failed": 1}, "SLURM has ended the job that was meant"
    write_atomic(attempt.path / "owner.json", json.dumps({**owner, "host": "a-node", "cluster": "older"}))
    assert slurm.nora("status", *WORDS, "--json") == 0
    assert json.loads(capsys.readouterr().out)["table2"]["running"] == 1, "its heartbeat is fresh, its cluster not here"

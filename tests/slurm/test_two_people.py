"""Two people, one store, one cluster: real users, real jobs of theirs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from testbed import Testbed, hold

from nora.launch.submission import submissions
from nora.store.attempt import Job
from nora.store.runs import Store
from slurm_testbed import configured

pytestmark = pytest.mark.slurm
GROUP, ALICE, BOB = "noralab", "nora_alice", "nora_bob"
RUN = ["scale=smoke", "task=cb", "seed=0", "method=lora"]


@dataclass(frozen=True)
class Person:
    """Somebody at a shell of their own."""

    name: str
    home: Path

    def __call__(self, *command: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
        """Root's interpreter may lie where only root reads: the capability to read is kept, none to write."""
        who = ["setpriv", "--reuid", self.name, "--regid", GROUP, "--clear-groups"]
        able = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
        return subprocess.run(
            [*who, *able, *command],
            env={**os.environ, "HOME": str(self.home)}, umask=umask,
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Person, Person]]:
    if os.getuid() != 0 or not all(map(shutil.which, ("useradd", "groupadd", "setpriv"))):
        pytest.skip("NO REAL USERS: not root, or no useradd")
    subprocess.run(["groupadd", "-f", GROUP], check=True)
    made = []
    for name in (ALICE, BOB):
        subprocess.run(["useradd", "-M", "-g", GROUP, "-s", "/bin/bash", name], check=False, capture_output=True)
        home = tmp_path_factory.mktemp(name)
        shutil.chown(home, name, GROUP)
        made.append(Person(name, home))
    yield made[0], made[1]
    for name in (ALICE, BOB):
        subprocess.run(["userdel", name], check=False, capture_output=True)
    subprocess.run(["groupdel", GROUP], check=False, capture_output=True)


def _nora(slurm: Testbed, verb: str, store: Path, *more: str) -> list[str]:
    words = [*RUN, "exec=slurm", "exec.profile=testbed", "exec.code=live", f"exec.results={store}", *more]
    return [slurm.python, "-m", "nora", verb, "table2", *words]


def _store(parent: Path, mode: int) -> Path:
    store = parent / "store"
    store.mkdir()
    shutil.chown(store, ALICE, GROUP)
    store.chmod(mode)
    return store


def test_an_unshared_store_is_read_by_others_and_not_written(
    slurm: Testbed, people: tuple[Person, Person], tmp_path: Path
) -> None:
    alice, bob = people
    store = _store(tmp_path, 0o755)
    hold(slurm)
    done = alice(*_nora(slurm, "launch", store))
    assert done.returncode == 0, done.stderr
    before = slurm.submitted()
    done = bob(*_nora(slurm, "status", store, "--json"))
    assert done.returncode == 0 and json.loads(done.stdout)["table2"]["queued"] == 1, done.stderr
    for command in (_nora(slurm, "launch", store), [slurm.python, "-m", "nora", "run", *RUN, f"exec.results={store}"]):
        done = bob(*command)
        said = [line for line in done.stderr.splitlines() if not line.startswith("commit unknown: ")]  # it is root's
        assert done.returncode == 1 and len(said) == 1, done.stderr
        assert "permission denied" in done.stderr and f"belongs to {ALICE}" in done.stderr
    assert slurm.submitted() == before


def test_a_shared_store(slurm: Testbed, people: tuple[Person, Person], tmp_path: Path) -> None:
    """Queued, then running with a late heartbeat: Bob starts nothing beside it and cannot take it away."""
    alice, bob = people
    store = _store(tmp_path, 0o2775)
    hold(slurm)
    assert alice(*_nora(slurm, "launch", store)).returncode == 0
    before = slurm.submitted()
    done = bob(*_nora(slurm, "launch", store))
    assert "nothing to submit: 1 queued" in done.stdout and slurm.submitted() == before, done.stderr
    done = bob(*_nora(slurm, "cancel", store))
    assert f"left: it is {ALICE}'s" in done.stdout, done.stderr
    (submission,) = submissions(store)
    ((identity, entry),) = submission.content["runs"].items()
    alice("scancel", str(submission.job(0)))
    name = submission.job_name(0)
    job = alice(
        "sbatch", "--parsable", "-J", name, "-p", "scav", "-o", "/dev/null", "--wrap", "sleep 60"
    ).stdout.strip()
    note = submission.folder / "array-0.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "job": job}))
    slurm.wait(lambda: (f"{job}_N/A", "RUNNING") in slurm.jobs())
    attempt = Store(store).new_attempt(entry["spec"]["kind"], identity, job=Job(job, name, "testbed"))
    owner = attempt.owner()
    (attempt.path / "owner.json").write_text(json.dumps({**owner, "host": "a-node"}))
    late = time.time() - 600
    os.utime(attempt.path / "heartbeat", (late, late))
    subprocess.run(["chown", "-R", f"{ALICE}:{GROUP}", store / "runs"], check=True)
    before = slurm.submitted()
    done = bob(*_nora(slurm, "plan", store))
    assert f"attempt 1, job {job} RUNNING" in done.stdout, done.stdout
    done = bob(*_nora(slurm, "launch", store))
    assert "nothing to submit: 1 running" in done.stdout and slurm.submitted() == before, done.stderr

    # A job that Bob's queue does not have: her heartbeat is fresh, so it proves nothing.
    (attempt.path / "owner.json").write_text(json.dumps({**owner, "host": "a-node", "job": "99999"}))
    os.utime(attempt.path / "heartbeat")
    note.write_text(json.dumps({**json.loads(note.read_text()), "job": "99999"}))
    for person, state in ((bob, "running"), (alice, "failed")):
        done = person(*_nora(slurm, "status", store, "--json"))
        assert json.loads(done.stdout)["table2"][state] == 1, (done.stdout, done.stderr)


def test_what_one_writes_into_a_shared_store_the_other_may_too(
    slurm: Testbed, people: tuple[Person, Person], tmp_path: Path
) -> None:
    """With a umask of 022: Bob runs, Alice collates and repeats his damaged run."""
    alice, bob = people
    store = _store(tmp_path, 0o2775)
    run = ["run", *RUN, f"exec.results={store}", "exec.device=cpu", "exec.progress=false"]
    done = bob(slurm.python, "-m", "nora", *run)
    assert done.returncode == 0, done.stderr
    mine = [path for path in store.rglob("*") if path.stat().st_mode & 0o020 == 0]
    assert mine == [] and len(list(store.rglob("record.json"))) == 1
    assert alice(*_nora(slurm, "collate", store)).returncode == 0
    (record,) = store.rglob("record.json")
    record.write_text("{")
    done = alice(slurm.python, "-m", "nora", *run)
    assert done.returncode == 0 and "the run is repeated" in done.stderr, done.stderr


def test_where_a_site_shows_nobody_elses_jobs(slurm: Testbed, people: tuple[Person, Person], tmp_path: Path) -> None:
    """PrivateData=jobs: what Bob cannot see is not taken for over, whether it waits, is late or was told to stop; what
    the store says he knows; Alice sees it all."""
    alice, bob = people
    store = _store(tmp_path, 0o2775)

    def planned(person: Person) -> tuple[str, str]:
        done = person(*_nora(slurm, "plan", store, "--json"))
        assert done.returncode == 0, done.stderr
        (cell,) = [c for c in json.loads(done.stdout)["table2"] if c["stage"] == 1]
        return cell["state"], cell["reason"]

    def bob_starts_nothing_beside(job: str) -> None:
        state, reason = planned(bob)
        assert state == "queued" and reason.startswith(f"as far as is known: job {job} is {ALICE}'s and this site")
        before = slurm.submitted()
        done = bob(*_nora(slurm, "launch", store))
        assert "nothing to submit: 1 queued" in done.stdout and slurm.submitted() == before, done.stderr

    with configured(slurm.folder, "PrivateData=jobs,nodes,partitions,usage,users,reservations"):
        hold(slurm)
        assert alice(*_nora(slurm, "launch", store)).returncode == 0
        (submission,) = submissions(store)
        ((identity, entry),) = submission.content["runs"].items()
        job, name = str(submission.job(0)), submission.job_name(0)
        assert job not in bob("squeue", "-h", "-t", "all", "-o", "%A").stdout and planned(alice)[0] == "queued"
        bob_starts_nothing_beside(job)
        assert "nothing to submit: 1 queued" in bob(*_nora(slurm, "retry", store)).stdout
        assert f"job {job} left: it is {ALICE}'s" in bob(*_nora(slurm, "cancel", store)).stdout
        assert f"{ALICE}'s; this site shows nobody else's jobs" in bob(
            slurm.python, "-m", "nora", "why", identity, f"exec.results={store}"
        ).stdout  # fmt: skip

        # It runs, and its heartbeat is late (a suspended job, a file server away): then it was told to stop.
        attempt = Store(store).new_attempt(entry["spec"]["kind"], identity, job=Job(job, name, "testbed"))
        (attempt.path / "owner.json").write_text(json.dumps({**attempt.owner(), "host": "a-node"}))
        subprocess.run(["chown", "-R", f"{ALICE}:{GROUP}", store / "runs"], check=True)
        assert planned(bob)[0] == "running", "her heartbeat is fresh"
        late = time.time() - 600
        os.utime(attempt.path / "heartbeat", (late, late))
        bob_starts_nothing_beside(job)
        attempt.interrupt("stopped at step 3")
        bob_starts_nothing_beside(job)

        # It raised: her job does not take it up again, and the store says so. The next one is Bob's.
        (attempt.path / "interrupted.json").unlink()
        attempt.fail("OSError: no more disk")
        assert planned(bob) == ("failed", "attempt 1: OSError: no more disk")
        alice("scancel", job)
        before = slurm.submitted()
        hold(slurm)
        done = bob(*_nora(slurm, "launch", store))
        assert "submitted 1 runs" in done.stdout and slurm.submitted() == before + 1, done.stderr
        assert planned(bob)[0] == "queued" and BOB in planned(alice)[1]


def test_a_hidden_partition_and_a_persons_own_defaults_hide_no_job(
    slurm: Testbed, people: tuple[Person, Person], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, _ = people
    store = _store(tmp_path, 0o755)
    slurm.ask("scontrol", "update", "partition=scav", "hidden=yes", "state=down")
    try:
        before = slurm.submitted()
        assert alice(*_nora(slurm, "launch", store, "exec.partition=scav")).returncode == 0
        assert alice("squeue", "-h", "-o", "%A").stdout == "" and slurm.submitted() == before + 1
        with monkeypatch.context() as patch:
            patch.setenv("SQUEUE_PARTITION", "gpu")
            done = alice(*_nora(slurm, "launch", store, "exec.partition=scav"))
        assert "nothing to submit: 1 queued" in done.stdout and slurm.submitted() == before + 1, done.stderr
    finally:
        slurm.ask("scontrol", "update", "partition=scav", "hidden=no", "state=up")

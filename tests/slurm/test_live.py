"""What is shown of live jobs, the canary, and the endings that only a real scheduler brings about."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import STAGE_1, Testbed, ends_identically, job_of, launch_and_wait_for_step

from nora import cli
from nora.files import canonical_json
from nora.store.runs import Store
from nora.store.states import run_state, take_snapshot
from nora.verbs import campaign

pytestmark = pytest.mark.slurm
Out = pytest.CaptureFixture[str]


def test_a_canary_runs_first_and_prints_memory_and_speed(slurm: Testbed, capsys: Out) -> None:
    """One short run per resource class, in SLURM; the table's own store stays empty; a second one has its answer."""
    words = ["task=cb,rte", "seed=0", "method=lora"]
    before = slurm.submitted()
    assert slurm.nora("launch", *words, "--canary") == 0
    out = capsys.readouterr().out
    assert "submitted 1 runs of finetune/opt_smoke in 1 tasks" in out and out.count("canary lora") == 1
    assert "ms a step" in out and "GiB of memory" in out
    assert slurm.submitted() - before == 1 and list(take_snapshot(slurm.store).values()) == []
    (record,) = take_snapshot(Store(slurm.results / "canary")).values()
    assert record.run["job"] and record.metrics["steps"] <= 20
    assert slurm.nora("launch", *words, "--canary") == 0
    assert "submitted" not in (again := capsys.readouterr().out) and "ms a step" in again
    assert slurm.submitted() - before == 1


def test_status_of_a_live_array(slurm: Testbed, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--json`` has the step it is at; ``--watch`` shows frame after frame and ends by itself when nothing runs."""
    kind, identity = launch_and_wait_for_step(slurm, 5)
    capsys.readouterr()
    assert slurm.nora("status", *STAGE_1, "--json") == 0
    shown = json.loads(capsys.readouterr().out)["table2"]
    assert shown["running"] == 1 and shown["progress"][identity]["phase"] == "train"
    assert 5 <= shown["progress"][identity]["step"] <= shown["progress"][identity]["total"] == 400
    monkeypatch.setattr(campaign, "_REFRESH_SECONDS", 0.5)
    assert slurm.nora("status", *STAGE_1, "--watch") == 0
    frames = capsys.readouterr().out.split("table2 at scale=smoke")[1:]
    assert len(frames) >= 3 and f"{identity} running lora cb seed 0: train" in frames[0]
    assert ": 1 cells: 1 done" in frames[-1] and "running" not in frames[-1]
    assert slurm.store.read(kind, identity) is not None


@pytest.mark.slow
def test_preemptions_are_not_counted(slurm: Testbed, quiet: str) -> None:
    """Told to go four times, once more than a broken run is tried: it goes on each time, in one submission."""
    kind, identity = launch_and_wait_for_step(slurm, 3)
    for times in range(1, 5):
        subprocess.run(["scancel", "--signal=USR2", job_of(slurm, kind, identity)], check=True)
        slurm.wait(lambda n=times: len(slurm.store.attempts(kind, identity)) > n, 60)  # type: ignore[misc]
        slurm.wait(lambda: slurm.journal_steps(kind, identity) > 0)
    ends_identically(slurm, kind, identity, quiet)
    assert slurm.store.failures(kind, identity) == 0
    assert len(list(slurm.results.glob("submissions/*/submission.json"))) == 1


@pytest.mark.slow
def test_without_requeue_a_stopped_job_is_left_to_the_next_launch(
    slurm: Testbed, quiet: str, capsys: Out, site: str
) -> None:
    kind, identity = launch_and_wait_for_step(slurm, 5, f"exec.profile={site}")
    subprocess.run(["scancel", "--signal=USR2", job_of(slurm, kind, identity)], check=True)
    slurm.wait(slurm.idle)
    assert run_state(slurm.store, kind, identity).state == "interrupted"
    assert "the profile says requeue: false" in slurm.logs()
    assert slurm.nora("launch", *STAGE_1) == 0
    ends_identically(slurm, kind, identity, quiet)


@pytest.fixture
def site(checkout: Path, tmp_path: Path) -> Iterator[str]:
    """The testbed's profile without requeue, under a name of its own."""
    folder = checkout / "slurm" / "profiles"
    path = folder / f"once-{tmp_path.name}.yaml"
    path.write_text((folder / "testbed.yaml").read_text().replace("requeue: true", "requeue: false"))
    yield path.stem
    path.unlink()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_schedulers_own_time_limit(slurm: Testbed, checkout: Path, tmp_path: Path) -> None:
    """A minute less the delay is too short for this run: SLURM itself sends the signal, until the record is there."""
    words = ["task=cb", "seed=0", "method=lora", "protocol.epochs=600", "method.dropout=0.1"]
    folder = checkout / "slurm" / "profiles"
    path = folder / f"minute-{tmp_path.name}.yaml"
    path.write_text((folder / "testbed.yaml").read_text().replace("time_min: 10", "time_min: 1"))
    try:
        assert slurm.nora("launch", *words, f"exec.profile={path.stem}", "exec.checkpoint_every=100000") == 0
    finally:
        path.unlink()
    slurm.wait(lambda: bool(list(take_snapshot(slurm.store).values())), 800)
    (record,) = take_snapshot(slurm.store).values()
    assert record.run["attempt"] > 1 and record.run["resumed_at_step"] > 0
    attempts = slurm.store.attempts("finetune", record.id)
    assert all("its state is saved" in str(a.interruption()) for a in attempts[:-1])
    assert slurm.store.failures("finetune", record.id) == 0
    cli.main(["launch", "table2", "scale=smoke", *words, f"exec.results={tmp_path / 'quiet'}", "exec.processes=1"])
    (expected,) = take_snapshot(Store(tmp_path / "quiet")).values()
    assert canonical_json(record.result) == canonical_json(expected.result)


@pytest.mark.slow
def test_a_factorisation_told_to_stop_starts_again(slurm: Testbed, capsys: Out) -> None:
    """USR2 during Figure 4's long curve: stopped, requeued, its record there in the end."""
    words = ["panel=a", "seed=0"]
    assert slurm.nora("launch", *words, target="fig4") == 0
    runs = slurm.results / "runs" / "factorize"
    slurm.wait(lambda: _long(slurm) is not None)
    identity = str(_long(slurm))
    # Unchecked: scancel repeats its signal while the job is in transition, as here on its way back, and fails where the
    # job has ended meanwhile. So there are two starts, or three.
    subprocess.run(["scancel", "--signal=USR2", job_of(slurm, "factorize", identity)], check=False)
    slurm.wait(slurm.idle, 240)
    *stopped, last = slurm.store.attempts("factorize", identity)
    assert stopped and all("it starts afresh" in str(a.interruption()) for a in stopped), slurm.logs()
    record = slurm.store.read("factorize", identity)
    assert record is not None and record.run["attempt"] == last.number and len(list(runs.iterdir())) == 4
    capsys.readouterr()
    assert slurm.nora("status", *words, "--json", target="fig4") == 0
    assert json.loads(capsys.readouterr().out)["fig4"] == {"done": 4}


def _long(slurm: Testbed) -> str | None:
    """The factorisation of 3,000 iterations, once it is under way."""
    for path in (slurm.results / "runs" / "factorize").glob("*"):
        journal = path / "attempts" / "0001" / "journal.jsonl"
        if journal.is_file() and '"total": 3000' in journal.read_text() and '"step": 30,' in journal.read_text():
            return path.name
    return None

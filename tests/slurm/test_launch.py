"""A launch on a real scheduler: arrays, throttle, chunks, refusals, and that nothing is ever submitted twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from testbed import Testbed, hold

from nora import cli
from nora.launch import submit as submit_module
from nora.launch.queue import read_queue
from nora.launch.slurm import Task
from nora.store.states import take_snapshot

pytestmark = pytest.mark.slurm
Out = pytest.CaptureFixture[str]


def test_a_table_from_plan_to_collate(slurm: Testbed, capsys: Out) -> None:
    """Both stages of a small Table 2: launched, run, launched again, collated, verified."""
    words = ["task=cb", "seed=0", "method=lora,nora", "exec.runs_per_task=2"]
    assert slurm.nora("plan", *words) == 0
    assert "array 0: finetune/opt_smoke: 1 runs in 1 tasks" in capsys.readouterr().out
    started = time.monotonic()
    assert slurm.nora("launch", *words) == 0
    assert time.monotonic() - started < 10, "launch returns at once"
    assert "1 cells wait for a choice" in capsys.readouterr().out
    assert slurm.nora("launch", *words) == 0
    assert "nothing to submit: 1 " in capsys.readouterr().out
    slurm.wait(slurm.idle)
    assert slurm.nora("launch", *words) == 0
    assert "submitted 1 runs of finetune/opt_smoke" in capsys.readouterr().out
    slurm.wait(slurm.idle)
    assert slurm.nora("launch", *words) == 0
    assert "nothing to submit: 2 done" in capsys.readouterr().out
    assert slurm.submitted() - slurm.states()["PENDING"] >= 2
    records = list(take_snapshot(slurm.store).values())
    assert len(records) == 2 and all(r.run["job"] and r.run["peak_memory_gib"] > 0 for r in records)
    assert slurm.nora("collate", *words) == 0
    assert slurm.nora("verify", *words) == 0
    assert (slurm.results / "tables" / "table2.smoke.md").is_file()


def test_an_array_is_throttled_chunked_and_not_submitted_twice(slurm: Testbed, capsys: Out) -> None:
    """Six runs in chunks of four, then cancelled; the next launch submits exactly them again."""
    hold(slurm)
    before = slurm.submitted()
    words = ["task=cb,sst2,rte", "seed=0,1", "method=lora", "exec.max_array_size=4", "exec.parallel=3"]
    assert slurm.nora("launch", *words) == 0
    assert "submitted 4 runs" in (out := capsys.readouterr().out) and "submitted 2 runs" in out
    assert slurm.submitted() - before == 6
    throttles = slurm.ask("squeue", "-h", "-t", "PD", "-o", "%F %K").split("\n")
    assert any(line.endswith("0-3%3") for line in throttles), throttles
    assert slurm.nora("launch", *words) == 0 and slurm.submitted() - before == 6
    assert slurm.nora("status", *words, "--json") == 0
    out = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(out)["table2"]["queued"] == 6
    assert slurm.nora("cancel", *words, "--dry-run") == 0 and slurm.nora("status", *words, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["table2"]["queued"] == 6
    assert slurm.nora("cancel", *words) == 0
    slurm.wait(slurm.idle)
    assert slurm.nora("launch", *words) == 0
    assert slurm.states()["PENDING"] == 6


def test_two_hundred_runs_are_submitted_by_one_sbatch(
    slurm: Testbed, checkout: Path, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    """Submission alone: one array, payloads of a few hundred bytes."""
    from dataclasses import replace

    from nora.config.spec import run_id
    from nora.kinds import compose_run
    from nora.launch.cluster import submit_cells
    from nora.launch.profile import load_profile
    from nora.tables.cell import Cell
    from nora.workspace import Workspace

    hold(slurm)
    spec, settings, _ = compose_run(checkout, [*slurm.words()[1:], "task=cb", "method=lora"])
    made = []
    for seed in range(200):
        one = replace(spec, seed=seed)
        made.append(Cell("table2", "smoke", "lora", "cb", seed, 1, {}, (), one, run_id(one)))
    before = slurm.submitted()
    started = time.monotonic()
    submit_cells("table2", made, load_profile(checkout, settings), Workspace(checkout, slurm.store, settings))
    seconds = time.monotonic() - started
    record_property("seconds_for_200_runs", seconds)
    print(f"200 runs submitted in {seconds:.2f} s")
    assert slurm.submitted() - before == 200
    assert len(list(slurm.results.glob("submissions/*/array-*.json"))) == 1, (
        "one array: sbatch is called once, not 200 times"
    )
    pickles = list(slurm.results.glob("submissions/*/log/*_submitted.pkl"))
    assert len(pickles) == 200 and max(p.stat().st_size for p in pickles) < 600
    assert len(read_queue(slurm.results).held) == 200


def test_a_launch_killed_after_sbatch_submits_nothing_twice(slurm: Testbed, capsys: Out) -> None:
    """The process dies inside sbatch's answer: the array exists, its number was never written, its payloads neither."""
    hold(slurm)
    before = slurm.submitted()
    words = slurm.words("task=cb,rte", "seed=0", "method=lora")
    code = (
        "import os, sys\nfrom submitit.slurm.slurm import SlurmExecutor\n"
        "real = SlurmExecutor._get_job_id_from_submission_command\n"
        "SlurmExecutor._get_job_id_from_submission_command = staticmethod(lambda text: os._exit(9))\n"
        f"from nora.cli import main\nmain(['launch', *{words!r}])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert slurm.submitted() - before == 2
    assert not list(slurm.results.glob("submissions/*/array-0.json"))
    assert cli.main(["status", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["table2"]["queued"] == 2
    assert cli.main(["launch", *words]) == 0
    assert "is of a launch that was cut short" in capsys.readouterr().out
    assert slurm.submitted() - before == 2
    assert len(list(slurm.results.glob("submissions/*/log/*_submitted.pkl"))) == 2
    slurm.clear()
    slurm.wait(slurm.idle)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("gpus: 9", "Requested node configuration is not available"),
        ("mem_gb: 9999", "not available"),
        ("partition: nowhere", "invalid partition"),
        ("constraint: a100", "Invalid feature"),
    ],
)
def test_impossible_resources_are_refused_before_anything_is_queued(
    slurm: Testbed, change: str, said: str, capsys: Out, checkout: Path, tmp_path: Path
) -> None:
    """A site file that asks for what the cluster does not have: one line, exit code 2, an empty queue."""
    text = (checkout / "slurm" / "profiles" / "testbed.yaml").read_text()
    key = change.split(":")[0]
    lines = [
        line if key not in line or line.startswith("#") else line.replace(f"{key}: 1", change).replace(
            f"{key}: 2", change).replace(f"{key}: gpu", change).replace(f"{key}: null", change)
        for line in text.splitlines()
    ]  # fmt: skip
    broken = checkout / "slurm" / "profiles" / f"broken-{tmp_path.name}.yaml"
    broken.write_text("\n".join(lines))
    before = slurm.submitted()
    try:
        words = slurm.words("task=cb", "seed=0", "method=lora", f"exec.profile={broken.stem}")
        assert cli.main(["launch", *words]) == 2
    finally:
        broken.unlink()
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error
    assert slurm.submitted() == before and not list(slurm.results.glob("submissions/*/submission.json"))


def test_the_queue_not_answering_is_no_reason_to_submit(
    slurm: Testbed, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a controller that is not there, launch fails and status says what it rests on."""
    words = ["task=cb", "seed=0", "method=lora"]
    hold(slurm)
    assert slurm.nora("launch", *words) == 0
    monkeypatch.setattr("nora.launch.slurm.SECONDS", 0.001)
    assert slurm.nora("launch", *words) == 1
    assert slurm.nora("status", *words) == 0
    assert "own markers alone" in capsys.readouterr().err


def test_adoption_writes_the_payloads_that_sbatch_promised(slurm: Testbed, checkout: Path) -> None:
    """``adopt`` takes only live jobs under the submission's own names."""
    hold(slurm)
    assert slurm.nora("launch", "task=cb", "seed=0", "method=lora") == 0
    from nora.launch.submission import submissions

    (submission,) = submissions(slurm.results)
    (submission.folder / "array-0.json").unlink()
    other = Task("7", None, "PENDING", "nora-table2-other-0", "")
    dead = Task("8", None, "CANCELLED", submission.job_name(0), "")
    assert submit_module.adopt(submission, [other, dead]) == []
    assert submit_module.adopt(submission, [other, dead, Task("9", None, "PENDING", submission.job_name(0), "")]) == [
        "9"
    ]
    assert submission.job(0) == "9"

"""What SLURM can do to a run while it runs; each time the record equals that of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from testbed import STAGE_1, Testbed, ends_identically, job_of, launch_and_wait_for_step, long_run

from nora import cli
from nora.config.spec import run_id
from nora.files import canonical_json
from nora.kinds import compose_run
from nora.launch import slurm as client
from nora.store.runs import Store
from nora.store.states import run_state, take_snapshot
from nora.tables.methods import load_table

pytestmark = pytest.mark.slurm
Out = pytest.CaptureFixture[str]


def test_usr2_saves_and_requeues(slurm: Testbed, quiet: str, capsys: Out) -> None:
    """As before a time limit: no checkpoint was due, so the one it continues from was made on the signal."""
    kind, identity = launch_and_wait_for_step(slurm, 5, "exec.checkpoint_every=100000")
    job = job_of(slurm, kind, identity)
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    slurm.wait(lambda: slurm.store.attempts(kind, identity)[0].interruption() is not None, 20)
    assert slurm.nora("launch", *STAGE_1) == 0
    assert "nothing to submit: 1 queued" in capsys.readouterr().out, "requeued: SLURM holds it"
    ends_identically(slurm, kind, identity, quiet)
    assert [a.owner()["job"] for a in slurm.store.attempts(kind, identity)] == [job, job]
    assert slurm.store.failures(kind, identity) == 0
    assert cli.main(["why", identity[:8], f"exec.results={slurm.results}"]) == 0
    out = capsys.readouterr().out
    assert f"run {identity}: done" in out and "stopped at step" in out and "published its record" in out
    assert cli.main(["logs", identity[:8], f"exec.results={slurm.results}"]) == 0
    assert f"run {identity}: done" in capsys.readouterr().out


@pytest.mark.slow
def test_requeue_from_outside_continues_from_disk(slurm: Testbed, quiet: str) -> None:
    """scontrol requeue sends TERM, then KILL."""
    kind, identity = launch_and_wait_for_step(slurm, 30)
    client.requeue(job_of(slurm, kind, identity))
    ends_identically(slurm, kind, identity, quiet)


def test_a_killed_run_is_failed_and_only_it_is_submitted_again(slurm: Testbed, quiet: str, capsys: Out) -> None:
    """SIGKILL to the process itself: FAILED in SLURM, failed here, continued by the next launch."""
    kind, identity = launch_and_wait_for_step(slurm, 50)
    job = job_of(slurm, kind, identity)
    os.kill(slurm.store.attempts(kind, identity)[-1].owner()["pid"], signal.SIGKILL)
    slurm.wait(slurm.idle)
    assert dict(slurm.jobs())[job + "_N/A" if "_" not in job else job] == "FAILED"
    assert cli.main(["why", identity, f"exec.results={slurm.results}"]) == 0
    out = capsys.readouterr().out
    assert "failed" in out and "ended without a word" in out and "FAILED" in out
    assert slurm.nora("launch", *STAGE_1) == 0
    assert "submitted 1 runs" in capsys.readouterr().out
    ends_identically(slurm, kind, identity, quiet)


@pytest.mark.slow
def test_a_cancelled_run_is_continued_by_the_next_launch(slurm: Testbed, quiet: str) -> None:
    kind, identity = launch_and_wait_for_step(slurm, 30)
    assert slurm.nora("cancel", *STAGE_1) == 0
    slurm.wait(slurm.idle)
    assert run_state(slurm.store, kind, identity).state in ("interrupted", "failed")
    assert slurm.nora("launch", *STAGE_1) == 0
    ends_identically(slurm, kind, identity, quiet)


@pytest.mark.slow
def test_preemption_in_both_modes(slurm: Testbed, quiet: str) -> None:
    """``scav``: SLURM requeues what it preempts. ``scavk``: it cancels; a run that cannot be requeued is launched
    again. An urgent job takes the whole cluster each time."""
    for partition in ("scav", "scavk"):
        bed = Testbed(slurm.folder, slurm.results / partition, slurm.python)
        kind, identity = launch_and_wait_for_step(bed, 10, f"exec.partition={partition}")
        urgent = ["sbatch", "-p", "urgent", "-N2", "--exclusive", "--gpus-per-node=8", "-o", "/dev/null"]
        subprocess.run([*urgent, "--wrap", "sleep 4"], check=True, capture_output=True)
        bed.wait(lambda b=bed, k=kind, i=identity: not b.store.attempts(k, i)[0].is_alive(), 40)  # type: ignore[misc]
        bed.wait(lambda b=bed: "PD" not in b.ask("squeue", "-h", "-p", "urgent", "-o", "%t"), 40)  # type: ignore[misc]
        assert bed.nora("launch", *STAGE_1, f"exec.partition={partition}") == 0
        ends_identically(bed, kind, identity, quiet)
        assert len(bed.store.attempts(kind, identity)) == 2


@pytest.mark.slow
def test_a_lost_node_is_survived(slurm: Testbed, quiet: str) -> None:
    """The node is set down under the run; SLURM requeues it; the node comes back."""
    kind, identity = launch_and_wait_for_step(slurm, 30)
    nodes = set(slurm.ask("squeue", "-h", "-t", "R", "-o", "%N").split())
    (node,) = nodes
    slurm.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        ends_identically(slurm, kind, identity, quiet)
    finally:  # it may have come back by itself
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False, capture_output=True)
    assert slurm.store.failures(kind, identity) == 0


BROKEN = ["task=rte", "seed=0", "method=lora", "model.targets=[no_such_module]"]


@pytest.mark.slow
def test_a_run_that_raises_is_failed_everywhere_and_is_not_tried_for_ever(slurm: Testbed, capsys: Out) -> None:
    """FAILED in SLURM, the reason in ``why``, three launches at most, then only ``retry``."""
    for attempt in (1, 2, 3):
        assert slurm.nora("launch", *BROKEN) == 0
        assert "submitted 1 runs" in capsys.readouterr().out, attempt
        slurm.wait(slurm.idle)
    assert slurm.states()["FAILED"] >= 3
    assert slurm.nora("launch", *BROKEN) == 0
    out = capsys.readouterr().out
    assert "has failed 3 times: left alone" in out and "nothing to submit: 1 failed" in out
    (identity,) = [p.name for p in (slurm.results / "runs" / "finetune").iterdir()]
    assert cli.main(["why", identity, f"exec.results={slurm.results}", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["state"] == "failed" and len(found["attempts"]) == 3 and "no_such_module" in found["reason"]
    assert [job["state"] for job in found["jobs"]] == ["FAILED"] * 3
    assert slurm.nora("retry", *BROKEN) == 0
    assert "submitted 1 runs" in capsys.readouterr().out
    slurm.wait(slurm.idle)
    assert len(slurm.store.attempts("finetune", identity)) == 4


def test_a_second_start_of_a_live_run_says_so_and_ends_well(
    slurm: Testbed, quiet: str, checkout: Path, capsys: Out
) -> None:
    """While SLURM runs it, a start by hand does nothing and exits 0."""
    kind, identity = launch_and_wait_for_step(slurm, 5)

    table = load_table(checkout, "table2", ["scale=smoke", *STAGE_1])
    (cell,) = [c for c in table.cells({}) if c.stage == 1]
    assert cli.main(["run", *cell.overrides, f"exec.results={slurm.results}", "exec.progress=false"]) == 0
    assert f"run {identity} is running: attempt 1" in capsys.readouterr().out
    ends_identically(slurm, kind, identity, quiet, resumed=False)


def test_children_live_through_usr2(slurm: Testbed, tmp_path: Path) -> None:
    """A data loader's forked workers and a started program are alive after the signal that reaches the whole step."""
    code = (
        "import os, subprocess, sys, time, torch\n"
        "from nora.launch.worker import StopSignals\n"
        "signals = StopSignals()\n"
        "class Rows(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 100000\n"
        "    def __getitem__(self, i): time.sleep(0.01); return i\n"
        "program = subprocess.Popen(['sleep', '600'])\n"
        "rows = iter(torch.utils.data.DataLoader(Rows(), num_workers=2, batch_size=4))\n"
        f"open({str(tmp_path / 'up')!r}, 'w').close()\n"
        "end = time.time() + 60\n"
        "while not signals.requested() and time.time() < end: next(rows)\n"
        "for _ in range(20): next(rows)\n"
        f"open({str(tmp_path / 'end')!r}, 'w').write(f'{{signals.requeue.is_set()}} {{program.poll()}}')\n"
        "program.kill()\nos._exit(0)\n"
    )
    (tmp_path / "loader.py").write_text(code)
    program = f"srun {slurm.python} {tmp_path}/loader.py"
    done = slurm.ask("sbatch", "--parsable", "-o", str(tmp_path / "out"), "--wrap", program)
    slurm.wait(lambda: (tmp_path / "up").exists())
    subprocess.run(["scancel", "--signal=USR2", done.strip()], check=True)
    slurm.wait(lambda: (tmp_path / "end").exists() or slurm.idle(), 70)
    assert (tmp_path / "end").read_text() == "True None", (tmp_path / "out").read_text()


def test_long_run_is_what_a_table_lists(checkout: Path, slurm: Testbed) -> None:
    """The helper above names the run that ``nora run`` with the cell's overrides would make."""
    spec, _, _ = compose_run(
        checkout,
        ["scale=smoke", "task=cb", "method=lora", "protocol.batch_size=4", "protocol.lr=0.001",
         "measure=[spectrum,zero_shot]", "protocol.epochs=200", "method.dropout=0.1", "seed=0"],
    )  # fmt: skip
    assert run_id(spec) == long_run(slurm)[1]


@pytest.mark.slow
def test_a_bank_is_one_task_that_is_requeued_and_loses_nothing(slurm: Testbed, capsys: Out) -> None:
    """Three methods of one base in one task: USR2 in the middle, and each has the record of a quiet bank."""
    methods = "method=lora,nora,nora_plus,olora"
    words = [*STAGE_1, methods, "exec.bank=4", "exec.checkpoint_every=100000"]
    quiet = slurm.results.parent / "quiet"

    def launch(results: Path) -> list[str]:
        """Both stages; the second is the bank, whose ids it returns."""
        assert slurm.nora("launch", *words, f"exec.results={results}") == 0
        slurm.wait(slurm.idle)
        first = set(take_snapshot(Store(results)))
        capsys.readouterr()
        assert slurm.nora("launch", *words, f"exec.results={results}") == 0
        assert "submitted 3 runs of finetune/opt_smoke in 1 tasks" in capsys.readouterr().out
        table = load_table(Path(__file__).resolve().parents[2], "table2", ["scale=smoke", *STAGE_1, methods])
        cells = table.cells({i: r for i, r in take_snapshot(Store(results)).items()})
        return [str(c.id) for c in cells if c.id and c.id not in first]

    bank = launch(quiet)
    slurm.wait(slurm.idle)
    expected = {i: canonical_json(r.result) for i, r in take_snapshot(Store(quiet)).items() if i in bank}
    assert len(expected) == 3 and launch(slurm.results) == bank
    slurm.wait(lambda: all(slurm.journal_steps("finetune", i) >= 3 for i in bank))
    subprocess.run(["scancel", "--signal=USR2", job_of(slurm, "finetune", bank[0])], check=True)
    slurm.wait(lambda: all(slurm.store.read("finetune", i) is not None for i in bank))
    for identity, result in expected.items():
        record = slurm.store.read("finetune", identity)
        assert record is not None and canonical_json(record.result) == result
        assert record.run["resumed_at_step"] and sorted(record.run["bank"]) == sorted(bank)
        assert len(slurm.store.attempts("finetune", identity)) == 2

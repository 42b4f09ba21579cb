"""Which code a job runs: the commit of the launch, whatever happens to the checkout afterwards."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from testbed import Testbed

from nora import cli
from nora.store.states import take_snapshot

pytestmark = pytest.mark.slurm
Out = pytest.CaptureFixture[str]
WORDS = ["task=cb", "seed=0", "method=lora"]


@pytest.fixture
def clone(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of this tree of our own, committed, as the working directory."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--shared", str(checkout), str(folder)], check=True)
    files = subprocess.run(["git", "ls-files"], cwd=checkout, capture_output=True, text=True, check=True).stdout.split()
    changed = [f for f in files if (checkout / f).is_file() and (checkout / f).read_bytes() != _bytes(folder / f)]
    for name in changed:  # what is being worked on
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((checkout / name).read_bytes())
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *identity, "commit", "-qam", "t", "--allow-empty"], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(os.environ, "PYTHONPATH", str(folder / "src"))
    return folder


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _launch(slurm: Testbed) -> int:
    return cli.main(["launch", *[w for w in slurm.words(*WORDS) if not w.startswith("exec.code")]])


def test_a_snapshot_is_what_runs(slurm: Testbed, clone: Path, capsys: Out) -> None:
    """The checkout is broken while the job waits; the job runs the commit and its record says so."""
    slurm.ask("scontrol", "update", "partition=gpu", "state=down")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True).stdout
    assert _launch(slurm) == 0
    (clone / "src" / "nora" / "execution" / "execute.py").write_text("raise SystemExit('edited while it waited')\n")
    (clone / "conf" / "method" / "lora.yaml").write_text("name: edited\n")
    slurm.ask("scontrol", "update", "partition=gpu", "state=up")
    slurm.wait(slurm.idle)
    (record,) = take_snapshot(slurm.store).values()
    assert record.run["commit"] == commit.strip() and record.run["dirty"] is False, slurm.logs()
    subprocess.run(["git", "checkout", "-q", "--", "conf"], cwd=clone, check=True)
    assert cli.main(["launch", *slurm.words("task=rte", "seed=0", "method=lora", "exec.code=snapshot")]) == 2
    assert "a tracked file differs from the last commit" in capsys.readouterr().err


def test_another_commit_is_refused(slurm: Testbed, clone: Path) -> None:
    """The snapshot says another commit than was submitted: the job is FAILED and there is no attempt."""
    slurm.ask("scontrol", "update", "partition=gpu", "state=down")
    assert _launch(slurm) == 0
    (marker,) = slurm.results.glob("snapshots/*/.nora-snapshot.json")
    marker.write_text(json.dumps({"commit": "f" * 40}))
    slurm.ask("scontrol", "update", "partition=gpu", "state=up")
    slurm.wait(slurm.idle)
    assert "is at commit ffff" in slurm.logs() and not (slurm.results / "runs").exists()

"""Hydra's own launcher on the real scheduler, placed by the site file."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from testbed import Testbed

from nora.store.states import take_snapshot

pytestmark = pytest.mark.slurm


@pytest.mark.slow
def test_a_multirun_goes_where_the_profile_says(slurm: Testbed, checkout: Path, tmp_path: Path) -> None:
    """Two runs: in the partition asked for, with the profile's GPU, memory, CPUs and requeue; the typed time wins."""
    folder = checkout / "slurm" / "profiles"
    site = f"scratch-{tmp_path.name}"
    text = (folder / "testbed.yaml").read_text()
    (folder / f"{site}.yaml").write_text(text.replace("scratch: /tmp", "scratch: ${NOWHERE:-/tmp}"))
    words = [
        "-m", "hydra/launcher=submitit_slurm", f"exec.profile={site}", "exec.partition=scav",
        "hydra.launcher.timeout_min=7", f"hydra.sweep.dir={tmp_path / 'sweep'}", "scale=smoke", "task=cb",
        "method=lora,nora", f"exec.results={slurm.results}", "exec.device=cpu",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            [slurm.python, "-m", "nora", "run", *words],
            cwd=checkout, env={**os.environ}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        (folder / f"{site}.yaml").unlink()
    assert done.returncode == 0, done.stderr
    records = list(take_snapshot(slurm.store).values())
    slurm.wait(slurm.idle)
    assert {r.spec["method"]["name"] for r in records} == {"lora", "nora"}
    for record in records:
        said = slurm.ask("scontrol", "show", "job", record.run["job"])
        for wanted in (
            "Partition=scav ", "TresPerNode=gres:gpu:h100:1", "MinMemoryNode=2G", "TimeLimit=00:07:00", "Requeue=1",
            "CPUs/Task=1 ", "JobState=COMPLETED", "JobName=nora-multirun",
        ):  # fmt: skip
            assert wanted in said, (wanted, said)
    (script,) = set((tmp_path / "sweep").rglob("*submission.sh"))
    text = script.read_text()
    assert re.search(r"^set -euo pipefail$", text, re.M) and "NOWHERE:-/tmp}" in text
    assert "#SBATCH --array=0-1%2" in text and "#SBATCH --signal=USR2@30" in text

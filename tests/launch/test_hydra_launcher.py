"""Hydra's own submitit launchers: a site file as their settings; the local kind runs our multirun (same pickles)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nora import cli
from nora.kinds import compose_run
from nora.launch.profile import _for_bash_alone, place
from nora.store.runs import Store
from nora.store.states import take_snapshot

Out = pytest.CaptureFixture[str]


@pytest.mark.slow
def test_a_multirun_through_submitit_local(checkout: Path, tmp_path: Path) -> None:
    words = [
        "-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", f"hydra.sweep.dir={tmp_path / 'sweep'}",
        "scale=smoke", "task=cb", "method=lora,nora", f"exec.results={tmp_path / 'r'}", "exec.progress=false",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "nora", "run", *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {r.spec["method"]["name"] for r in take_snapshot(Store(tmp_path / "r")).values()} == {"lora", "nora"}


def _place(checkout: Path, *words: str) -> tuple[list[str], str, dict[str, Any]]:
    given = ["-m", "hydra/launcher=submitit_slurm", "scale=smoke", *words]
    rest, launcher = place(given, checkout)
    assert launcher is not None
    own = [word for word in rest if not word.startswith(("-", "hydra"))]
    return rest, *launcher([compose_run(checkout, own)[0]])


def test_a_profile_becomes_the_launchers_settings(checkout: Path) -> None:
    """The generic site, with what exec says instead; the run itself is a local one on its node."""
    rest, name, settings = _place(checkout, "exec.profile=h100", "exec.partition=p1", "exec.parallel=3")
    assert name == "submitit_slurm" and not any(word.startswith("exec.p") for word in rest)
    assert settings.pop("setup") == [
        "set -euo pipefail", "export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false",
        "eval $'export TMPDIR=\"\\x24{SLURM_TMPDIR:-/tmp}\"'", "export SRUN_CPUS_PER_TASK=8",
    ]  # fmt: skip
    assert settings == {
        "name": "nora-multirun",
        "partition": "p1", "timeout_min": 240, "cpus_per_task": 8, "mem_gb": 64, "gpus_per_node": 1,
        "signal_delay_s": 240, "array_parallelism": 3, "max_num_timeout": 1_000_000,
        "additional_parameters": {"requeue": True},
    }  # fmt: skip


@pytest.mark.parametrize("line", ["echo '${X:-a b}' \"${X:-c \\\\ d}\"", "echo \\\\x24 '\\n' ${X-e}'s", "echo $HOME"])
def test_bash_reads_the_same_without_dollar_and_brace(line: str) -> None:
    """bash itself is the reference."""
    said = [
        subprocess.run(["bash", "-c", one], capture_output=True, text=True, check=False)
        for one in (line, _for_bash_alone(line))
    ]
    assert said[0].stdout == said[1].stdout and said[0].returncode == said[1].returncode
    assert "${" not in _for_bash_alone(line)


def test_a_typed_resource_leaves_out_the_profiles_other_spellings(checkout: Path) -> None:
    typed = ["hydra.launcher.gres=gpu:2", "hydra.launcher.mem_per_gpu=8G"]
    _, _, settings = _place(checkout, "exec.profile=testbed", *typed)
    assert "mem_gb" not in settings and settings["additional_parameters"] == {"requeue": True}
    assert settings["cpus_per_task"] == 1
    _, _, settings = _place(checkout, "exec.profile=testbed")
    assert settings["additional_parameters"] == {"requeue": True, "gpus-per-node": "h100:1"}


def test_other_launchers_are_left_alone_and_a_wrong_site_is_named(checkout: Path, capsys: Out) -> None:
    for words in (["-m", "seed=0,1"], ["-m", "hydra/launcher=submitit_local"], ["-m", "hydra/launcher=joblib"]):
        assert place(words, checkout) == (words, None)
    rest, launcher = place(["-m", "hydra/launcher=submitit_local", "exec.profile=testbed"], checkout)
    assert launcher is not None and rest == ["-m", "hydra/launcher=submitit_local"]
    assert launcher([compose_run(checkout, ["scale=smoke"])[0]]) == ("submitit_local", {"timeout_min": 10})
    assert cli.main(["run", "-m", "hydra/launcher=submitit_slurm", "exec.profile=tetsbed", "seed=0,1"]) == 2
    assert "did you mean testbed? slurm/profiles has h100, testbed" in capsys.readouterr().err

"""``nora doctor``: every check in its good and its other state, and the exit codes."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from nora import cli
from nora.errors import RunFailed
from nora.launch import doctor, readiness, slurm
from nora.launch.doctor import Finding

Out = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
CHECKS = ["Python", "torch", "transformers", "peft", "submitit", "wandb", "checkout", "results", "Hub", "Hub token",
          "Hub cache", "revisions.lock", "SLURM"]  # fmt: skip


def _found(tmp_path: Path, checkout: Path) -> dict[str, Finding]:
    return {f.what: f for f in doctor.examine(checkout, tmp_path)}


def _git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=folder, check=True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A committed checkout with nothing pinned; no network, no token, no SLURM."""
    folder = tmp_path / "site"
    (folder / "conf").mkdir(parents=True)
    (folder / "conf" / "revisions.lock").write_text("{}")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "t")

    def refuse(*given: Any, **more: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(slurm, "installed", lambda: False)
    return folder


def test_a_laptop_without_anything_is_good_enough(site: Path, tmp_path: Path) -> None:
    found = _found(tmp_path, site)
    assert list(found) == CHECKS
    assert {what for what, f in found.items() if f.verdict == "bad"} == set()
    assert "does not answer (no route); runs on shipped data work" in found["Hub"].said
    assert "gated models stay shut" in found["Hub token"].said and found["revisions.lock"].said.startswith("0 models")
    assert found["SLURM"].verdict == "note" and found["checkout"].verdict == "good"
    assert found["torch"].said == importlib.metadata.version("torch")


def test_a_login_node_with_everything(site: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    lock = {"models": {"facebook/opt-1.3b": {"commit": "c0ffee"}}, "tasks": {"cb": {}}}
    (site / "conf" / "revisions.lock").write_text(json.dumps(lock))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    said = _found(tmp_path, site)["revisions.lock"]
    assert said.verdict == "note" and "not in the Hub cache: facebook/opt-1.3b" in said.said
    (tmp_path / "hub" / "models--facebook--opt-1.3b" / "snapshots" / "c0ffee").mkdir(parents=True)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 500 * 2**30))
    monkeypatch.setattr(socket, "create_connection", lambda *given, **more: socket.socket())
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "t")
    monkeypatch.setattr(slurm, "installed", lambda: True)
    monkeypatch.setattr(slurm, "queue", lambda users=(): [slurm.Task("1", None, "PENDING", "x", "")])
    monkeypatch.setattr(slurm, "max_array_size", lambda: 1001)
    found = _found(tmp_path, site)
    assert {f.what for f in found.values() if f.verdict != "good"} <= {"checkout"}, "the lock is not committed yet"
    assert "changed since" in found["checkout"].said
    assert found["SLURM"].said == "answers; 1 jobs of yours; MaxArraySize 1001"
    assert found["results"].said.startswith("500 GiB free")


def test_what_is_missing_is_named(site: Path, tmp_path: Path, monkeypatch: Patch, capsys: Out, checkout: Path) -> None:
    """A needed library is bad (exit 1), a full disk or a silent controller a note (exit 0)."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2**30))
    monkeypatch.setattr(slurm, "installed", lambda: True)

    def silent() -> Any:
        raise RunFailed("squeue: no answer within 60 s")

    monkeypatch.setattr(slurm, "queue", silent)
    found = _found(tmp_path, site)
    assert found["results"].verdict == found["Hub cache"].verdict == found["SLURM"].verdict == "note"
    assert "does not answer: squeue" in found["SLURM"].said
    assert cli.main(["doctor", f"exec.results={tmp_path}"]) == 0
    assert "note  results" in capsys.readouterr().out
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "only what `nora prefetch` has brought" in _found(tmp_path, site)["Hub"].said

    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("peft", "wandb"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = _found(tmp_path, site)
    assert (found["peft"].verdict, found["wandb"].verdict) == ("bad", "note")
    assert cli.main(["doctor", "--json", f"exec.results={tmp_path}"]) == 1
    said = {f["what"]: f for f in json.loads(capsys.readouterr().out)}
    assert list(said) == CHECKS and said["peft"] == {"what": "peft", "verdict": "bad", "said": "not installed"}


def test_a_folder_without_git_and_an_old_python(site: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    shutil.rmtree(site / ".git")
    monkeypatch.setattr("sys.version_info", (3, 10, 9))
    found = _found(tmp_path, site)
    assert found["Python"].verdict == "bad" and found["Python"].said == "3.10.9"
    assert "commit unknown" in found["checkout"].said and "not a git repository" in found["checkout"].said


def test_a_hub_out_of_reach_is_a_finding_of_the_target(monkeypatch: Patch) -> None:
    """Its client raises its HTTP library's own error, which is no OSError."""
    from huggingface_hub import HfApi

    class ConnectError(Exception):
        pass

    def away(self: Any, repo: str) -> None:
        raise ConnectError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "auth_check", away)
    assert readiness._unpinned("a/b").endswith("; the Hub says ConnectError")


def test_cancel_without_slurm_is_one_line(monkeypatch: Patch, tmp_path: Path, capsys: Out) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["cancel", "table2", "scale=smoke", "task=cb"]) == 2
    assert capsys.readouterr().err == "nora: cancel: squeue is not found; this is no machine of a SLURM cluster\n"


_DNS = """{0}: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
{0}: error: fetch_config: DNS SRV lookup failed
{0}: error: _establish_config_source: failed to fetch config
{0}: fatal: Could not establish a configuration source"""
_FILE = """{0}: error: s_p_parse_file: cannot stat file /etc/slurm.conf: No such file or directory, retrying in 1sec
{0}: error: ClusterName needs to be specified
{0}: fatal: Unable to process configuration file"""
_DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [(_DNS, 2, "installed, without a slurm.conf; this is no machine of a SLURM cluster"),
     (_FILE, 2, "installed, without a slurm.conf; this is no machine of a SLURM cluster"), (_DOWN, 1, _DOWN)],
)  # fmt: skip
def test_slurm_without_a_cluster_is_one_line(
    answer: str, code: int, said: str, monkeypatch: Patch, tmp_path: Path, capsys: Out
) -> None:
    """As SLURM 23.11's client commands say it where nobody has configured them, or where the controller is away."""
    for name in ("sbatch", "squeue", "srun", "scontrol", "sacct"):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{answer.format(name)}\nEND\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    place = f"exec.results={tmp_path / 'store'}"
    assert cli.main(["cancel", "table2", "scale=smoke", "task=cb", place]) == code
    assert capsys.readouterr().err == f"nora: scontrol: {said}\n"
    (tmp_path / "store" / "submissions").mkdir(parents=True)
    assert cli.main(["plan", "table2", "scale=smoke", "task=cb", place]) == 0
    assert capsys.readouterr().err == f"nora: scontrol: {said}; states are from the runs' own markers alone\n"
    assert doctor._slurm().said == f"does not answer: squeue: {said}"[: len("does not answer: ") + 90]

"""After `nora prefetch` a run needs no network: every attempt at a connection ends the process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_COMMIT = "3f5c25d0bc631cb57ac65913f76e22c2dfb61d62"
_RUN = """
import os, sys
from dataclasses import replace
from pathlib import Path

def refuse(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        os.write(2, f"NETWORK {event} {arguments[-1] if event == 'socket.connect' else arguments[0]}".encode())
        os._exit(99)

sys.addaudithook(refuse)
from nora.execution.execute import execute
from nora.kinds import compose_run
from nora.store.runs import Store
spec, settings, _ = compose_run(Path.cwd(), ["scale=smoke", "model=opt_1.3b", "model.max_length=1024", "task=cb",
                                             "exec.device=cpu", "exec.progress=false", "exec.wandb=offline"])
spec = replace(spec, model=replace(spec.model, revision=sys.argv[1]))
print(execute(spec, settings, checkout=Path.cwd(), store=Store(Path(sys.argv[2])))[0].status)
"""


@pytest.fixture
def cache(checkout: Path, tmp_path: Path) -> Path:
    """A Hub cache as a download of facebook/opt-1.3b leaves it, with a small model's files in it."""
    repo = tmp_path / "hub" / "models--facebook--opt-1.3b"
    snapshot = repo / "snapshots" / _COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(_COMMIT)
    for path in (checkout / "assets" / "opt_mini").iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, snapshot)
    return tmp_path / "hub"


def _run(checkout: Path, cache: Path, commit: str, *, offline: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": offline}
    return subprocess.run(
        [sys.executable, "-c", _RUN, commit, str(cache.parent / "results")],
        cwd=checkout, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_fetched_hub_model_trains_without_a_single_connection(checkout: Path, cache: Path) -> None:
    done = _run(checkout, cache, _COMMIT, offline="1")
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_commit_that_was_not_fetched_is_refused_by_name_without_a_connection(
    checkout: Path, cache: Path, offline: str
) -> None:
    done = _run(checkout, cache, "0" * 40, offline=offline)
    assert done.returncode not in (0, 99) and f"commit {'0' * 40} cannot be loaded" in done.stderr, done.stderr


def test_the_guard_sees_a_connection(checkout: Path, cache: Path) -> None:
    asks = _RUN.split("from nora")[0] + "import socket; socket.create_connection(('huggingface.co', 443), 1)"
    done = subprocess.run([sys.executable, "-c", asks], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 99 and "NETWORK socket.getaddrinfo huggingface.co" in done.stderr, done.stderr

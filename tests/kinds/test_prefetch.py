"""``nora prefetch`` on a Hub of our own: names are resolved once, and what is pinned is brought by its commit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from nora.errors import RunFailed
from nora.execution import prefetch
from nora.files import sha256_bytes
from nora.kinds import compose_run

REPO = "facebook/opt-1.3b"
FILES = {"config.json": sha256_bytes(b"{}"), "pytorch_model.bin": sha256_bytes(b"11")}
ROOT = Path(__file__).parents[2]
SPEC, _, _ = compose_run(ROOT, ["scale=smoke", "model=opt_1.3b", "task=cb"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is asked of the Hub, and the commit its main branch is at."""
    seen: dict[str, Any] = {"head": "a" * 40, "weights": "11", "brought": []}

    class Api:
        def model_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
            return SimpleNamespace(sha=revision or seen["head"], siblings=None)

    def bring(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        seen["brought"].append((repo, revision))
        folder = tmp_path_factory.mktemp("snapshot")
        (folder / "pytorch_model.bin").write_text(seen["weights"])
        (folder / "config.json").write_text("{}")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", bring)
    return seen


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "revisions.lock").write_text("{}")
    return tmp_path


def _lock(site: Path) -> Any:
    return json.loads((site / "conf" / "revisions.lock").read_text())


def test_a_clone_with_a_committed_lock_gets_exactly_those_commits(hub: dict[str, Any], site: Path) -> None:
    assert prefetch.prefetch([SPEC], site, dry_run=True) == [f"{REPO}: would be resolved and downloaded"]
    assert prefetch.prefetch([SPEC], site, dry_run=False) == [f"{REPO}: pinned to {'a' * 40}"]
    lock = _lock(site)
    assert lock == {"models": {REPO: {"commit": "a" * 40, "files": FILES}}}
    hub["head"], hub["brought"] = "b" * 40, []  # the Hub moves on; a colleague's machine has nothing yet
    assert "what of it is not here would be downloaded" in prefetch.prefetch([SPEC], site, dry_run=True)[0]
    assert hub["brought"] == []
    assert prefetch.prefetch([SPEC], site, dry_run=False) == [f"{REPO}: pinned to {'a' * 40}"]
    assert hub["brought"] == [(REPO, "a" * 40)] and _lock(site) == lock


def test_a_commit_that_is_not_what_the_lock_says_is_named(hub: dict[str, Any], site: Path) -> None:
    prefetch.prefetch([SPEC], site, dry_run=False)
    before, hub["weights"] = _lock(site), "22"
    with pytest.raises(RunFailed, match=f"{REPO}: commit a{{40}} is not what conf/revisions.lock says"):
        prefetch.prefetch([SPEC], site, dry_run=False)
    assert _lock(site) == before


def test_files_of_github_that_are_here_are_not_fetched_again(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import urllib.request

    from nora import tasks
    from nora.config.pins import DOWNLOADS

    task = tasks.load("instruct", "commonsense")
    counts = {task.TRAIN_FILE: task.NUM_TRAIN_ROWS}
    counts |= {task.TEST_FILE.format(folder=one.folder): one.num_test_rows for one in task.SETS.values()}
    asked: list[str] = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        path = url.split(f"{task.COMMIT}/")[1]
        asked.append(path)
        return io.BytesIO(json.dumps([0] * counts[path]).encode())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    spec, _, _ = compose_run(ROOT, ["scale=smoke", "task=commonsense", "protocol=llm_adapters", "task.source=hub"])
    prefetch.prefetch([spec], site, dry_run=False)
    assert sorted(asked) == sorted(counts)
    (site / DOWNLOADS / task.COMMIT / task.TRAIN_FILE).write_text("cut off")
    asked.clear()
    prefetch.prefetch([spec], site, dry_run=False)
    assert asked == [task.TRAIN_FILE], "only the damaged one"

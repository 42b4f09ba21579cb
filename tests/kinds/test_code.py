"""What a record says of the code: the imported package's own commit, as it was before the work, and what differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nora import cli
from nora.errors import UserError
from nora.execution import provenance
from nora.execution.provenance import code_version
from nora.launch.submission import snapshot_code

_ASK = "import json, nora.execution.provenance as p; print(json.dumps(p.code_version(p.package_root())))"


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A committed checkout: code, a config, rows, a choice, results; one ignored folder."""
    folder = tmp_path / "repo"
    for name in ("src/code.py", "conf/method/lora.yaml", "data/cb/train.jsonl", "conf/chosen/t.yaml", "results/a.md"):
        _write(folder / name, f"{name}\n")
    _write(folder / ".gitignore", "data/hub/\n")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "t")
    return folder


@pytest.mark.parametrize(
    "name, dirty",
    [
        ("src/code.py", True),
        ("src/new.py", True),
        ("conf/method/mine.yaml", True),
        ("data/mycb/train.jsonl", True),
        ("assets/mine/config.json", True),
        ("conf/method/with blank \u00e4.yaml", True),
        ("conf/chosen/t.yaml", False),
        ("conf/chosen/new.yaml", False),
        ("results/a.md", False),
        ("results/new/record.json", False),
        ("data/hub/rows.json", False),
        ("notes.txt", False),
    ],
)
def test_what_a_run_could_read_makes_a_checkout_dirty(name: str, dirty: bool, repo: Path) -> None:
    assert code_version(repo) == {"commit": _git(repo, "rev-parse", "HEAD"), "dirty": False}
    _write(repo / name, "changed\n")
    assert code_version(repo) == {
        "commit": _git(repo, "rev-parse", "HEAD"),
        "dirty": dirty,
        **({"changed": [name]} if dirty else {}),
    }


def test_a_renamed_file_is_named_once(repo: Path) -> None:
    _git(repo, "mv", "src/code.py", "src/other.py")
    assert code_version(repo)["changed"] == ["src/other.py"]


def test_no_other_repository_answers(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tarball unpacked inside somebody's repository; GIT_DIR as hooks have it; no repository; one git refuses."""
    inside = repo / "vendor" / "nora"
    _write(inside / "src" / "code.py", "x\n")
    said = code_version(inside)
    assert (said["commit"], said["dirty"]) == ("unknown", None) and f"lies inside that of {repo}" in said["git"]
    alone = repo.parent / "alone"
    alone.mkdir()
    monkeypatch.setenv("GIT_DIR", str(repo / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(repo))
    assert "not a git repository" in code_version(alone)["git"]
    with pytest.raises(UserError, match="no commit is known .*not a git repository"):
        snapshot_code(alone, repo / "results")
    other = repo.parent / "other"
    shutil.copytree(repo, other)
    _git(repo, "commit", "-qm", "later", "--allow-empty")
    monkeypatch.delenv("GIT_DIR"), monkeypatch.delenv("GIT_WORK_TREE")
    own = _git(other, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(repo / ".git"))
    assert code_version(other) == {"commit": own, "dirty": False}
    monkeypatch.setenv("PATH", "/nowhere")
    assert "No such file or directory: 'git'" in code_version(other)["git"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder to somebody else")
def test_gits_refusal_is_in_the_record(repo: Path) -> None:
    for path in (repo, *repo.rglob("*")):
        os.chown(path, 54321, 54321)
    said = code_version(repo)
    assert said["commit"] == "unknown" and "dubious ownership" in said["git"]


def test_the_index_is_left_alone(repo: Path) -> None:
    """git status refreshes the index under its lock: a commit of the user's at that moment would fail."""
    index = repo / ".git" / "index"
    os.utime(repo / "src" / "code.py", (1, 1))
    before = (index.stat().st_mtime_ns, index.read_bytes())
    assert code_version(repo)["dirty"] is False
    assert (index.stat().st_mtime_ns, index.read_bytes()) == before
    (repo / ".git" / "index.lock").touch()
    assert code_version(repo)["dirty"] is False, "nor does it wait for somebody else's"


def test_the_imported_files_are_described_and_no_others(checkout: Path, tmp_path: Path) -> None:
    """Standing in one checkout with another's (or a wheel's) package first on the path."""

    def ask(folder: Path) -> dict[str, Any]:
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", _ASK], cwd=checkout, env=environment, capture_output=True, check=True
        )
        return dict(json.loads(done.stdout))

    other = tmp_path / "other"
    shutil.copytree(checkout / "src" / "nora", other / "src" / "nora", ignore=shutil.ignore_patterns("__pycache__"))
    _git(other, "init", "-q")
    _git(other, "add", ".")
    _git(other, "commit", "-qm", "t")
    assert ask(other / "src") == {"commit": _git(other, "rev-parse", "HEAD"), "dirty": False}
    site = tmp_path / "site-packages"
    shutil.copytree(other / "src" / "nora", site / "nora", ignore=shutil.ignore_patterns("__pycache__"))
    first = ask(site)
    assert first["commit"] == "unknown" and first["version"] and "installed package" in first["git"]
    assert ask(site) == first
    with (site / "nora" / "streams.py").open("a") as file:
        file.write("# edited in place\n")
    assert ask(site)["files_sha256"] != first["files_sha256"]


@pytest.fixture
def own_code(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The repo as the checkout of the imported package."""
    monkeypatch.setattr(provenance, "package_root", lambda: repo)
    provenance.code_of_this_process.cache_clear()
    yield repo
    provenance.code_of_this_process.cache_clear()


def test_a_commit_made_while_a_run_trains_is_not_its_code(own_code: Path, run: Callable[..., Any]) -> None:
    started = _git(own_code, "rev-parse", "HEAD")
    moved: list[str] = []

    def commit(update: object) -> None:
        if not moved:
            _write(own_code / "src" / "code.py", "edited while it trains\n")
            _git(own_code, "commit", "-qam", "later")
            moved.append(_git(own_code, "rev-parse", "HEAD"))

    record, _ = run("method=lora", show=commit)
    assert moved and moved[0] != started
    assert (record.run["commit"], record.run["dirty"]) == (started, False)


def test_an_unknown_commit_is_said_and_kept(
    own_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(own_code / ".git")
    words = ["scale=smoke", "task=cb", "method=lora", f"exec.results={tmp_path / 'r'}"]
    assert cli.main(["run", *words]) == 0
    assert "commit unknown: fatal: not a git repository" in caplog.text
    (path,) = (tmp_path / "r").glob("runs/*/*/record.json")
    kept = json.loads(path.read_text())["run"]
    assert kept["commit"] == "unknown" and "not a git repository" in kept["git"]
    assert cli.main(["show", path.parent.name, words[-1]]) == 0
    assert "unknown" in capsys.readouterr().out


def test_a_snapshot_carries_configs_and_rows_and_refuses_code(repo: Path, tmp_path: Path) -> None:
    plain, commit = snapshot_code(repo, tmp_path)
    _write(repo / "conf" / "method" / "mine.yaml", "name: mine\n")
    _write(repo / "data" / "mycb" / "train.jsonl", "{}\n")
    code, same = snapshot_code(repo, tmp_path)
    assert same == commit and code != plain
    assert (code / "conf" / "method" / "mine.yaml").read_text() == "name: mine\n"
    said = code_version(code)
    assert said["commit"] == commit and said["dirty"] is True
    assert set(said["changed"]) == {"conf/method/mine.yaml", "data/mycb/train.jsonl"}
    _write(repo / "conf" / "method" / "mine.yaml", "name: other\n")
    assert snapshot_code(repo, tmp_path)[0] != code, "other bytes, another snapshot"
    _write(repo / "src" / "mine.py", "x = 1\n")
    with pytest.raises(UserError, match="code that is in no commit: src/mine.py"):
        snapshot_code(repo, tmp_path)

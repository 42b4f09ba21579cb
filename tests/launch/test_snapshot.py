"""The copy of a commit that jobs run: what is in it, and what it takes from the checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nora.config.pins import DOWNLOADS
from nora.launch.submission import snapshot_code


def test_a_job_reads_what_prefetch_has_brought(tmp_path: Path) -> None:
    """Downloads are in no commit; without them a commonsense run of a snapshot would find no rows."""
    checkout, results = tmp_path / "checkout", tmp_path / "results"
    (checkout / "src").mkdir(parents=True)
    (checkout / "src" / "code.py").write_text("x = 1\n")
    (checkout / ".gitignore").write_text("data/hub/\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "t"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=checkout, check=True)
    code, commit = snapshot_code(checkout, results)
    assert code.name == commit[:16] and (code / "src" / "code.py").read_text() == "x = 1\n"
    assert not (code / DOWNLOADS).exists(), "nothing is there yet"
    (checkout / DOWNLOADS / "c0ffee").mkdir(parents=True)
    (checkout / DOWNLOADS / "c0ffee" / "rows.json").write_text("[]")
    assert (code / DOWNLOADS / "c0ffee" / "rows.json").read_text() == "[]"
    assert snapshot_code(checkout, results) == (code, commit)

"""``nora repeat ID``: identical where the run gives the same bytes again, and else what differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nora import cli, streams


def test_a_run_is_repeated_to_the_byte_and_one_that_is_not_says_what_differs(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, _ = run("method=nora")
    words = ["repeat", record.id[:8], f"exec.results={tmp_path / 'results'}", "exec.device=cpu", "exec.progress=false"]
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(words) == 0
    assert capsys.readouterr().out.startswith(f"{record.id}  nora on cb, opt_smoke, seed 0: identical")
    assert sorted(tmp_path.rglob("*")) == before, "its store is gone, the record's is as it was"
    draw = streams.generator
    monkeypatch.setattr(streams, "generator", lambda seed, *names, **more: draw(seed + 1, *names, **more))
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert "differs in " in out and "adapter.sha256" in out and "test.gold_nll" in out

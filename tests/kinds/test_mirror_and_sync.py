"""W&B gets copies: a dead server costs a run nothing, and an upload from our journal can be repeated."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nora import kinds
from nora.errors import RunFailed
from nora.execution import tracker
from nora.execution.tracker import history, sync
from nora.store.runs import Store
from nora.verbs.machine import load_program

Run = Callable[..., Any]


class _Server:
    """Stands in for wandb: one dictionary of steps per run id."""

    def __init__(self, *, silent: bool = False, broken: bool = False) -> None:
        self.runs: dict[str, dict[int, Any]] = {}
        self.inits = 0
        self.broken = broken
        self.answers = threading.Event()
        if not silent:
            self.answers.set()

    def init(self, **given: Any) -> Any:
        assert self.answers.wait(60)
        self.inits += 1
        steps = self.runs.setdefault(given["id"], {})

        def log(values: dict[str, Any], step: int) -> None:
            if self.broken and step == 3:
                raise ConnectionError("gone")
            steps[step] = values

        return SimpleNamespace(log=log, summary={}, finish=lambda: None)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        module = SimpleNamespace(init=self.init, Settings=lambda **kw: kw, api=SimpleNamespace(api_key="key"))
        patch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]


def test_a_silent_server_delays_neither_the_start_nor_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = _Server(silent=True)
    server.install(monkeypatch)
    monkeypatch.setattr(tracker, "_FINISH_SECONDS", 0.2)
    opened = tracker.WandbTracker(partial(tracker.open_run, "online", project="p", run_id="i", folder=tmp_path))
    assert not opened._thread.is_alive(), "importing W&B waits until the run has begun"  # type: ignore[attr-defined]
    opened.log({"loss": 1.0}, 1)
    opened.finish()
    assert server.inits == 0, "both came back while the server had not said a word"
    assert "nora sync-wandb" in caplog.text
    server.answers.set()
    opened._thread.join(60)
    assert server.runs == {"i": {1: {"loss": 1.0}}}, "what was handed over waits for it"


def test_one_line_tells_of_it_whatever_wandb_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """W&B's errors go over lines or say nothing, and after the end its threads are torn down with one more."""
    monkeypatch.setattr(tracker, "_FINISH_SECONDS", 0.2)
    late = threading.Event()

    def ends(error: Exception, *, wait: bool) -> list[str]:
        def start() -> Any:
            assert not wait or late.wait(60)
            raise error

        caplog.clear()
        opened = tracker.WandbTracker(start)
        opened.finish()
        late.set()
        opened._thread.join(60)
        return caplog.messages

    after = "; this run is not mirrored further, its record is not affected"
    assert ends(ConnectionError("HTTP 429:\n  slow down"), wait=False) == [f"W&B: HTTP 429: slow down{after}"]
    assert ends(ConnectionError(), wait=False) == [f"W&B: ConnectionError{after}"]
    late.clear()
    assert len(ends(ConnectionError(), wait=True)) == 1 and "no answer" in caplog.text


@pytest.mark.slow
def test_a_real_dead_address(checkout: Path) -> None:
    """W&B itself, online, against a closed port and a socket that never answers (figures in results/bench)."""
    bench = load_program(checkout / "benchmarks" / "mirror.py")
    for row in bench.run(quick=True)["rows"]:
        assert row["done"] and row["start_delay_seconds"] <= 1.0 and row["end_delay_seconds"] <= 31, row


def test_sync_uploads_every_step_once_under_the_runs_id(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record, _ = run("method=lora", store=tmp_path)
    store, specs = Store(tmp_path), {record.id: kinds.spec_of(record)}
    server = _Server(broken=True)
    server.install(monkeypatch)
    assert sync(store, specs, project="p", dry_run=True)[0].endswith("4 steps would be uploaded")
    assert server.inits == 0
    with pytest.raises(RunFailed, match="W&B did not take"):
        sync(store, specs, project="p", dry_run=False)
    server.broken = False
    assert len(sync(store, specs, project="p", dry_run=False)) == 1
    assert server.runs[record.id] == history(store, "finetune", record.id) and len(server.runs[record.id]) == 4
    assert sync(store, specs, project="p", dry_run=False) == [] and server.inits == 2, "nothing new, nothing sent"


def test_the_history_of_a_run_goes_over_its_attempts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for first, last in ((1, 3), (3, 5)):
        attempt = store.new_attempt("finetune", "a" * 16)
        lines = [f'{{"phase": "train", "step": {i}, "total": 5, "loss": {i}.5}}' for i in range(first, last + 1)]
        attempt.journal.write_text("\n".join(lines) + '\n{"phase": "tra')
        attempt.interrupt("test")
    assert history(store, "finetune", "a" * 16) == {i: {"loss": i + 0.5} for i in range(1, 6)}


def test_a_kept_base_gives_the_same_result(run: Run, checkout: Path, tmp_path: Path) -> None:
    """Two runs of one task of an array share one loaded base, which neither changes (PiSSA moves base weights)."""
    from nora.execution.execute import execute
    from nora.kinds import compose_run

    for method in ("pissa", "lora"):
        alone, _ = run(f"method={method}", store=tmp_path / "alone")
        words = ["scale=smoke", "task=cb", f"method={method}", "exec.device=cpu", "exec.progress=false"]
        spec, settings, _ = compose_run(checkout, words)
        shared, _ = execute(spec, settings, checkout=checkout, store=Store(tmp_path / "shared"), keep_base=True)
        assert shared.result == alone.result

"""The plan: each state a cell can be in, what is submitted, what it will cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nora import cli
from nora.config.spec import run_id
from nora.launch import local
from nora.launch.plan import SUBMITTABLE, counts, plan, run_progress
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import Snapshot, take_snapshot
from nora.tables.cell import Cell
from nora.tables.methods import Table, load_table
from nora.verbs.campaign import plan_text, status_text
from synthetic import record_of

Out = pytest.CaptureFixture[str]


@pytest.fixture
def table(checkout: Path) -> Table:
    return load_table(checkout, "table2", ["scale=mini", "task=cb", "seed=0"])


@pytest.fixture
def stage1(table: Table, checkout: Path) -> list[Cell]:
    return [c for c in table.cells({}) if c.stage == 1]


def _older(cell: Cell, version: int) -> Record:
    assert cell.spec is not None
    spec = replace(cell.spec, protocol=replace(cell.spec.protocol, version=version))
    return record_of(replace(cell, spec=spec, id=run_id(spec)))


def test_every_state(table: Table, stage1: list[Cell], checkout: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    done, diverged, older, failed = stage1
    for record in (record_of(done), record_of(diverged, status="diverged"), _older(older, 7)):
        store.publish_record(record)
    store.new_attempt("finetune", str(failed.id)).fail("RunFailed: full disk")
    made = {p.cell.id: p for p in plan(stage1, store, take_snapshot(store))}
    assert [made[c.id].state for c in stage1] == ["done", "diverged", "stale", "failed"]
    assert made[diverged.id].reason == "step 3, the loss"
    assert "a record of protocol version 7 exists" in made[older.id].reason
    assert "full disk" in made[failed.id].reason

    store.record_path("finetune", str(done.id)).write_text("{")
    store.new_attempt("finetune", str(failed.id))
    made = {p.cell.id: p for p in plan(stage1, store, take_snapshot(store))}
    assert made[done.id].state == "damaged"
    assert made[failed.id].state == "running" and "running" not in SUBMITTABLE
    assert {"missing", "interrupted", "failed", "damaged", "stale"} == set(SUBMITTABLE)

    waiting = [c for c in table.cells({}) if c.waits_for]
    assert {(p.state, p.reason) for p in plan(waiting, store, Snapshot({}))} == {("waits", "for lora")}
    assert counts(plan([stage1[0], *waiting], Store(tmp_path / "empty"), Snapshot({}))) == {
        "missing": 1,
        "waits": len(waiting),
    }


def test_cost_is_measured_where_a_like_run_has_a_record(table: Table, stage1: list[Cell], tmp_path: Path) -> None:
    records = {str(stage1[0].id): record_of(stage1[0])}
    for planned in plan(stage1, Store(tmp_path), Snapshot(records)):
        assert planned.hours == pytest.approx(36 / 3600) and planned.cost_source.startswith("measured")
    for planned in plan(stage1, Store(tmp_path), Snapshot({})):
        assert planned.hours is None and planned.cost_source.startswith("unknown")


def test_cost_at_paper_scale_says_that_it_is_an_estimate(checkout: Path, tmp_path: Path) -> None:
    paper = load_table(checkout, "table2", ["scale=paper", "seed=0", "method=lora"])
    for planned in plan(paper.cells({}), Store(tmp_path), Snapshot({})):
        assert planned.hours is not None and 0.001 < planned.hours < 10
        assert planned.cost_source.startswith("estimate")


def test_a_cell_that_waits_has_the_cost_of_the_largest_batch_it_may_get(checkout: Path, tmp_path: Path) -> None:
    paper = load_table(checkout, "table2", ["scale=paper", "seed=0", "method=lora,nora", "task=sst2,record"])
    planned = plan(paper.cells({}), Store(tmp_path), Snapshot({}))
    lora = {p.cell.column: p for p in planned if p.cell.row == "lora" and p.cell.settings["protocol.batch_size"] == 8}
    waiting = [p for p in planned if p.state == "waits"]
    assert len(waiting) == 2 * 3 * 3 and {p.cell.column for p in waiting} == {"sst2", "record"}
    for cell in waiting:
        like = lora[cell.cell.column].to_dict()
        for key in ("hours", "cost_source", "memory_gib", "memory_source"):
            assert cell.to_dict()[key] == like[key] is not None
    assert "cells)" not in plan_text(paper, planned).splitlines()[1], "the whole is summed, not a part of it"


def test_memory_is_the_largest_runs_with_its_own_source(checkout: Path, tmp_path: Path) -> None:
    paper = load_table(checkout, "table2", ["scale=paper", "seed=0"]).cells({})
    waiting_first = sorted(plan(paper, Store(tmp_path), Snapshot({})), key=lambda p: p.state != "waits")
    text = plan_text(load_table(checkout, "table2", ["scale=paper", "seed=0"]), waiting_first)
    assert "GiB a run (estimate: weights + kept activations (measured on blocks of the true width) + 1 GiB)" in text


def test_retry_runs_what_failed_and_nothing_else(
    stage1: list[Cell], checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    given: list[str | None] = []
    monkeypatch.setattr(local, "run_cells", lambda cells, workspace, **more: given.extend(c.id for c in cells))
    words = ["retry", "table2", "scale=mini", "task=cb", "seed=0", f"exec.results={tmp_path}"]
    assert cli.main(words) == 0 and given == [], "nothing has failed"
    failed = str(stage1[1].id)
    Store(tmp_path).new_attempt("finetune", failed).fail("RunFailed: full disk")
    assert cli.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("nora run ") == 1 and given == []
    assert cli.main(words) == 1, "it has failed again"
    assert given == [failed]


def test_texts_show_states_and_reasons(table: Table, stage1: list[Cell], tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.new_attempt("finetune", str(stage1[1].id)).fail("RunFailed: full disk")
    store.publish_record(record_of(stage1[0]))
    planned = plan(stage1, store, take_snapshot(store))
    for text in (plan_text(table, planned), status_text(table, planned)):
        assert "1 done" in text and "1 failed" in text and "2 missing" in text
        assert f"{stage1[1].id}" in text and "full disk" in text


def test_how_far_a_run_is_needs_no_owner(tmp_path: Path) -> None:
    """Between the look at who is alive and this one the file may go; the time left is then unknown."""
    attempt = Store(tmp_path).new_attempt("finetune", "0" * 16)
    attempt.journal.write_text("".join(f'{{"phase": "train", "step": {step}, "total": 9}}\n' for step in (1, 2)))
    found = run_progress(Store(tmp_path), "finetune", "0" * 16)
    assert found is not None and found["seconds_left"] is not None
    (attempt.path / "owner.json").unlink()
    assert run_progress(Store(tmp_path), "finetune", "0" * 16) == {**found, "seconds_left": None}

"""The cost table against sums done by hand over made-up records; its order is the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nora import tasks
from nora.errors import UserError
from nora.reporting.labels import papers_order
from nora.reporting.layouts.costs import build, cost
from nora.store.record import Record
from nora.tables.estimate import estimate, measured_hours
from nora.tables.methods import load_table
from nora.tables.target import Costs, CostsFile, load_costs, load_target

from synthetic import complete  # isort: skip


def test_hours_memory_and_bytes_are_sums_and_largest_of_the_records(checkout: Path) -> None:
    table = load_table(checkout, "table2", ["scale=mini", "task=cb", "seed=0,1", "method=lora"])
    records = complete(table)
    for i, (key, record) in enumerate(sorted(records.items())):
        metrics = {**record.metrics, "trainable_parameters": 1000 + i}
        run = {**record.run, "wall_seconds": 36.0 * (i + 1), "peak_memory_gib": 0.5 + i / 8}
        records[key] = Record(key, {**record.result, "metrics": metrics}, run)
    cells = table.cells(records)
    assert len(cells) == len(records) == 8
    found = cost([*cells, *cells], records, measured_hours(records.values()))
    assert (found.runs, found.done, found.waiting, found.unknown) == (8, 8, 0, 0), "a run listed twice counts once"
    assert found.actual == pytest.approx(sum(range(1, 9)) / 100)
    assert found.planned == pytest.approx(found.actual), "the mean of like runs times their number"
    assert (found.memory, found.adapter) == (0.5 + 7 / 8, 1007)
    half = dict(sorted(records.items())[:4])
    found = cost(cells, half, measured_hours(half.values()))
    assert (found.runs, found.done) == (8, 4) and found.actual == pytest.approx(0.1)
    assert found.planned == pytest.approx(8 * 0.1 / 4), "what is not there costs the mean of what is"
    found = cost(cells, {}, {})
    assert (found.unknown, found.actual, found.memory) == (8, 0.0, None)


def test_a_gpus_records_say_nothing_of_a_cpus_hours_nor_a_cpus_of_a_gpus(checkout: Path) -> None:
    """Two of four runs made on a CPU in 360 s each, one on a GPU in 36 s: the one that is not there takes 360 s."""
    table = load_table(checkout, "table2", ["scale=small", "task=cb", "seed=0", "method=lora"])
    records = complete(table)
    for (key, record), device in zip(sorted(records.items()), ["cpu", "cpu", "cuda", "cpu"], strict=False):
        run = {**record.run, "device": device, "wall_seconds": 36.0 if device == "cuda" else 360.0}
        records[key] = Record(key, record.result, run)
    kept = dict(sorted(records.items())[:3])
    measured = measured_hours(kept.values())
    assert sorted(measured.values()) == pytest.approx([0.01, 0.1])
    cells = [c for c in table.cells(records) if c.id in set(sorted(records)[:4])]
    found = cost(cells, kept, measured)
    assert found.planned == pytest.approx(0.1 * 3 + 0.01) and found.actual == pytest.approx(0.21)
    lacking = next(c for c in cells if c.id not in kept)
    assert estimate(lacking, measured, "cpu")[0] == pytest.approx(0.1)
    assert estimate(lacking, measured, "cuda")[0] == pytest.approx(0.01)
    only_gpu = {key: hours for key, hours in measured.items() if key[0] == "cuda"}
    assert estimate(lacking, only_gpu, "cpu") == (None, "unknown: no like run on a CPU has a record yet")
    assert found.on_gpu == pytest.approx(0.01)
    rows, protocol = lacking.spec.task, lacking.spec.protocol  # type: ignore[union-attr]
    tokens = tasks.load("superglue", "cb").TOKENS * tasks.load("superglue", "cb").OPTIONS
    trained, scored = rows.num_train * protocol.epochs, rows.num_dev * protocol.epochs + rows.num_test
    flop = 0.1345e9 * tokens * (4 * trained + 2 * scored)
    assert found.predicted == pytest.approx((flop / (0.2 * 989e12) + 30) / 3600)


def test_at_paper_scale_waiting_runs_are_counted_and_memory_is_an_estimate(checkout: Path) -> None:
    target = load_target(checkout, "cost", ["scale=paper"])
    assert isinstance(target, Costs)
    document = build(target, {})
    lines = {line.label: line.entries for line in document.blocks[0].lines}
    row = lines["Table 2, fine-tuning"]
    assert row[0].text == "0 of 1520" and "1160 wait" in row[1].detail and row[2].text == "0 s"
    hours = [estimate(cell, {}, "cuda")[0] for cell in load_target(checkout, "table2", ["scale=paper"]).cells({})]
    assert row[1].text == f"{sum(h for h in hours if h):.1f} h", "what `nora plan` says, waiting runs included"
    assert row[3].text == "–" and row[4].text.startswith("~ ") and row[5].text == "–"
    names = [name for name, *_ in document.csv_rows]
    assert names == sorted(names, key=lambda name: papers_order(str(name)))
    assert "Table 5, finetune" not in lines, "its runs are Table 2's"


def test_an_unknown_target_is_one_clear_line(checkout: Path) -> None:
    file = CostsFile(title="t", layout="costs", targets=["table2", "tabel4"])
    with pytest.raises(UserError, match=r"cost.yaml: targets: given 'tabel4', did you mean table4. allowed all, "):
        load_costs(checkout, file, "cost", [], {})

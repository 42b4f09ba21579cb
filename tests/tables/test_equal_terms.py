"""Table ``starts``: every method has the same number of trials, around one rate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nora import starts
from nora.config.spec import spec_dict
from nora.reporting import labels
from nora.reporting.figures import render
from nora.reporting.layouts import learning_rates, starts_losses
from nora.store.record import Record
from nora.tables.choice import equal_rates
from nora.tables.methods import load_table
from nora.tables.target import load_target


@pytest.mark.parametrize("budget", [1, 2, 3, 6])
def test_rates_are_half_a_decade_apart_around_the_centre(budget: int) -> None:
    rates = [float(rate) for rate in equal_rates(3e-3, budget)]
    assert len(rates) == budget
    assert math.prod(rates) ** (1 / budget) == pytest.approx(3e-3, rel=5e-3)
    assert all(b / a == pytest.approx(10**0.5, rel=1e-2) for a, b in zip(rates, rates[1:], strict=False))


@pytest.mark.parametrize("scale, centre", [("mini", 3e-3), ("smoke", 1e-3)])
def test_every_method_has_as_many_trials_at_the_same_rates(scale: str, centre: float, checkout: Path) -> None:
    table = load_table(checkout, "starts", [f"scale={scale}"])
    cells = table.cells({})
    assert len({cell.id for cell in cells}) == len(cells) == 21 * 2 * 2 * len(table.seeds)
    trials = {(cell.row, cell.column): set() for cell in cells}
    for cell in cells:
        assert cell.spec is not None
        trials[cell.row, cell.column].add((cell.spec.protocol.lr, cell.spec.protocol.batch_size))
    assert len({frozenset(found) for found in trials.values()}) == 1
    assert {rate for rate, _ in trials["lora", "cb"]} == set(equal_rates(centre, 2))


def test_every_start_there_is_has_a_row(checkout: Path) -> None:
    table = load_table(checkout, "starts", [])
    rows = [table.spec(method, "cb").method for method in table.methods]
    assert {row.init for row in rows} == set(starts.names("inits")) - {"loftq"}  # it quantises the base, no other does
    assert {row.variant for row in rows} - {None} == set(starts.names("variants"))
    assert {row.optimizer for row in rows} - {None} == {"lora_plus", "riemannian"}


def test_the_papers_own_grids_are_as_they_were(checkout: Path) -> None:
    table = load_table(checkout, "table2", [])
    assert table.file.budget is None and set(table.file.grid("nora", "cb")) == {"protocol.lr", "method.xi"}


def test_the_pictures_rows_have_the_same_trials_and_a_matched_start_is_its_own_run(checkout: Path) -> None:
    table = load_target(checkout, "starts_pictures", [])
    cells = table.cells({})
    assert len({cell.id for cell in cells}) == len(cells) == 22 * 2 * 3
    rates = {row: {cell.spec.protocol.lr for cell in cells if cell.row == row} for row in table.methods}
    assert {frozenset(found) for found in rates.values()} == {frozenset(equal_rates(2e-3, 2))}
    spec = {cell.row: cell.spec.method for cell in cells}
    assert spec["nora_matched"].init == spec["nora"].init == "nystrom" and spec["nora_matched"].match == "frobenius"
    assert "method=nora" in next(cell for cell in cells if cell.row == "nora_matched").overrides


def test_a_row_of_losses_is_its_better_rate_and_one_that_diverged_is_no_choice(checkout: Path) -> None:
    table = load_target(checkout, "starts_pictures", ["method=gaussian,nora"])
    low, high = sorted(equal_rates(2e-3, 2))
    losses = {("gaussian", low): 0.2, ("gaussian", high): 0.1, ("nora", low): 0.3, ("nora", high): 0.05}
    records = {}
    for cell in table.cells({}):
        rate = cell.spec.protocol.lr
        status = "diverged" if (cell.row, rate, cell.seed) == ("nora", high, 1) else "done"
        loss = losses[cell.row, rate] + 0.01 * cell.seed
        metrics = {"loss": {"mean": loss, "last_100": loss}}
        result = {"status": status, "spec": spec_dict(cell.spec), "metrics": metrics, "files": {}}
        result["diverged"] = {"step": 1, "tensor": "the loss"}
        records[cell.id] = Record(cell.id, result, {})
    document = starts_losses.build(table, records)
    gaussian, nora = document.blocks[0].lines
    assert gaussian.entries[0].text == "0.1100 ± 0.0100" and gaussian.entries[0].best
    assert gaussian.entries[3].text == f"{high:g} of 2" and nora.entries[3].text == f"{low:g} of 2"
    assert nora.entries[2].text.startswith("+0.2000 [")
    del records[next(cell.id for cell in table.cells({}) if cell.row == "gaussian")]
    assert starts_losses.build(table, records).blocks[0].lines[0].entries[0].text == "missing (5/6)"


def _trial(cell: object, loss: float, sharpness: float, *, diverged: bool = False) -> Record:
    metrics = {"dev": {"accuracy": 1 - loss / 10, "loss": loss}, "sharpness": {"value": sharpness}}
    result = {"status": "diverged" if diverged else "done", "spec": spec_dict(cell.spec), "metrics": metrics}  # type: ignore[attr-defined]
    if diverged:
        metrics.pop("dev")
        result["diverged"] = {"step": 1, "tensor": "the loss"}
    return Record(str(cell.id), {**result, "files": {}}, {})  # type: ignore[attr-defined]


def test_a_start_twice_as_sharp_is_expected_to_be_best_at_half_the_first_rows_rate(checkout: Path) -> None:
    """LoRA is best at the third of six rates and learns up to the fourth; NoRA is best at the second, learns no
    further, and diverges at the last."""
    table = load_target(checkout, "starts_rates", ["method=lora,nora"])
    rates = sorted({cell.spec.protocol.lr for cell in table.cells({})})
    losses = {"lora": [1.0, 0.8, 0.6, 0.9, 1.2, 3.0], "nora": [1.0, 0.7, 1.1, 2.0, 3.0, math.inf]}
    records = {}
    for cell in table.cells({}):
        loss = losses[cell.row][rates.index(cell.spec.protocol.lr)]
        sharpness = {"lora": 1.5, "nora": 3.0}[cell.row]
        records[cell.id] = _trial(cell, loss, sharpness, diverged=math.isinf(loss))
    figure = learning_rates.build(table, records)
    rows = {(row[1], row[2]): row for row in figure.csv_rows}
    assert len(rows) == 2 * 6 and figure.banner == labels.BANNERS["mini"]
    edge, best, predicted = (figure.csv_header.index(key) for key in ("edge", "best", "predicted_best"))
    assert rows["lora", rates[0]][best] == rates[2] and rows["nora", rates[0]][best] == rates[1]
    assert {row[edge] for (name, _), row in rows.items() if name == "lora"} == {rates[3]}
    assert {row[edge] for (name, _), row in rows.items() if name == "nora"} == {rates[1]}
    assert rows["nora", rates[0]][predicted] == pytest.approx(rates[2] / 2)
    assert rows["nora", rates[5]][figure.csv_header.index("dev_loss")] == math.inf
    assert set(render(figure)) == {"pdf", "png", "csv", "md"}
    # A start without one of its runs is not drawn from the others.
    del records[next(cell.id for cell in table.cells({}) if cell.row == "nora")]
    partial = learning_rates.build(table, records)
    assert {row[1] for row in partial.csv_rows} == {"lora"} and "1 of 12 runs are not there" in partial.banner


@pytest.mark.parametrize(
    "sharpness, best, said",
    [
        ([1.0, 2.0, 4.0, 8.0], [8.0, 4.0, 2.0, 1.0], "-1.00 (p = 0)"),
        ([8.0, 4.0, 2.0, 1.0], [8.0, 4.0, 2.0, 1.0], "1.00 (p = 0)"),
        ([8.0, 4.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0], "none, 3 for every start"),
    ],
)
def test_the_correlation_is_negative_where_sharper_starts_want_smaller_rates(
    sharpness: list[float], best: list[float], said: str
) -> None:
    rows = [learning_rates.Row((learning_rates.Point(1.0, 0.5, 1.0),), value) for value in sharpness]
    assert learning_rates.correlation(rows, best) == said


def test_a_note_says_what_remains_of_a_start_at_the_first_rows_size(checkout: Path) -> None:
    table = load_target(checkout, "starts_pictures", ["method=gaussian,nora,nora_matched"])
    losses = {"gaussian": 0.10, "nora": 0.13, "nora_matched": 0.101}
    records = {}
    for cell in table.cells({}):
        loss = losses[cell.row] + 0.01 * cell.seed
        metrics = {"loss": {"mean": loss, "last_100": loss}}
        result = {"status": "done", "spec": spec_dict(cell.spec), "metrics": metrics, "files": {}}
        records[cell.id] = Record(cell.id, result, {})
    (note,) = [line for line in starts_losses.build(table, records).notes if "at its own size" in line]
    assert note.startswith("NoRA differs from Gaussian by +0.0300 [") and "by +0.0010 [" in note

"""Table ``starts``: every method has the same number of trials, around one rate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nora import starts
from nora.tables.methods import equal_rates, load_table


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
    assert {row.init for row in rows} == set(starts.names("inits"))
    assert {row.variant for row in rows} - {None} == set(starts.names("variants"))
    assert {row.optimizer for row in rows} - {None} == {"lora_plus", "riemannian"}


def test_the_papers_own_grids_are_as_they_were(checkout: Path) -> None:
    table = load_table(checkout, "table2", [])
    assert table.file.budget is None and set(table.file.grid("nora", "cb")) == {"protocol.lr", "method.xi"}

"""Hyper-parameter choice: best dev metric, then lower dev loss, lower lr, smaller ξ; complete searches only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from nora.errors import UserError
from nora.store.record import Record
from nora.tables.choice import Trial, choose, chosen_path, grid_points, read_chosen, summarize
from nora.tables.methods import load_table


def _trial(metric: float, loss: float, lr: float = 1e-3, xi: float = 0.1, **changes: Any) -> Trial:
    values: dict[str, Any] = {"ids": (), "complete": True, "diverged": 0, **changes}
    return Trial({"protocol.lr": lr, "method.xi": xi}, metric, loss, **values)


@pytest.mark.parametrize(
    "trials, best",
    [
        ([_trial(0.5, 1.0), _trial(0.6, 9.0)], 1),
        ([_trial(0.6, 1.0), _trial(0.6, 0.9)], 1),
        ([_trial(0.6, 1.0, lr=1e-3), _trial(0.6, 1.0, lr=1e-4)], 1),
        ([_trial(0.6, 1.0, xi=0.2), _trial(0.6, 1.0, xi=0.05)], 1),
        ([_trial(0.6, 1.0, lr=1e-4, xi=0.2), _trial(0.6, 1.0, lr=1e-3, xi=0.05)], 0),
        ([_trial(-math.inf, math.inf, diverged=1), _trial(0.1, 5.0)], 1),
    ],
)
def test_order_of_ties(trials: list[Trial], best: int) -> None:
    assert choose(trials) is trials[best]
    assert choose(trials[::-1]) is trials[best], "whatever the order they are listed in"


def test_nothing_is_chosen_from_an_incomplete_or_wholly_diverged_search() -> None:
    assert choose([]) is None
    assert choose([_trial(0.9, 0.1), _trial(-math.inf, math.inf, complete=False)]) is None
    assert choose([_trial(-math.inf, math.inf, diverged=2)]) is None


def _record(accuracy: float, loss: float, status: str = "done") -> Record:
    metrics = {"dev": {"accuracy": accuracy, "loss": loss}} if status == "done" else {}
    return Record("x", {"status": status, "metrics": metrics, "spec": {}}, {})


def test_a_trial_is_the_mean_over_all_its_seeds() -> None:
    trial = summarize({}, [_record(0.5, 1.0), _record(0.7, 2.0)], metric="accuracy")
    assert (trial.metric, trial.loss, trial.complete, trial.diverged) == (pytest.approx(0.6), 1.5, True, 0)
    trial = summarize({}, [_record(0.9, 1.0), None], metric="accuracy")
    assert (trial.metric, trial.complete) == (-math.inf, False)
    trial = summarize({}, [_record(0.9, 1.0), _record(0, 0, "diverged")], metric="accuracy")
    assert (trial.metric, trial.complete, trial.diverged) == (-math.inf, True, 1)


def test_grid_points_in_the_order_written() -> None:
    assert grid_points({"b": [4, 8], "a": [1.0, 2.0]}) == [
        {"b": 4, "a": 1.0},
        {"b": 4, "a": 2.0},
        {"b": 8, "a": 1.0},
        {"b": 8, "a": 2.0},
    ]
    assert grid_points({}) == [{}]


def test_another_tables_choice_is_refused(checkout: Path, tmp_path: Path) -> None:
    text = chosen_path(checkout, "table2", "mini").read_text()
    for table, scale in (("table2", "small"), ("table8", "mini")):
        path = chosen_path(tmp_path, table, scale)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        with pytest.raises(UserError, match=r"chosen/.*: foreign \(the choice of table2 at scale=mini\)"):
            read_chosen(tmp_path, table, scale)


def test_a_table_of_chosen_runs_waits_where_nothing_is_chosen(checkout: Path) -> None:
    """Its cells are the committed choice's; of another table that has a search too, the same question is refused."""
    there = load_table(checkout, "forgetting", ["scale=mini", "method=nora"])
    chosen = read_chosen(checkout, "table2", "mini")["cb"]["nora"]
    assert [cell.settings for cell in there.cells({})] == [chosen] * 3
    waiting = load_table(checkout, "forgetting", ["scale=smoke"]).cells({})
    assert {(cell.id, cell.waits_for) for cell in waiting} == {(None, "a choice")}
    with pytest.raises(UserError, match="nora collate tuning"):
        load_table(checkout, "table2", ["scale=smoke", "search=chosen"]).cells({})

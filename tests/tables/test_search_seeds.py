"""A search over a seed of its own, then its choice over the table's: the cells of Table 2 at small scale."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from nora.tables.choice import choose
from nora.tables.methods import Table
from nora.tables.target import load_target
from synthetic import complete

ROOT = Path(__file__).resolve().parents[2]


def _table() -> Table:
    table = load_target(ROOT, "table2", ["scale=small", "task=sst2,cb"])
    assert isinstance(table, Table)
    return table


def test_each_method_has_the_same_number_of_trials_then_five_runs_per_task() -> None:
    table = _table()
    records = complete(table)
    cells = table.cells(records)
    assert len({c.id for c in cells}) == len(cells) == 2 * 7 * (4 + 5) and not any(c.waits_for for c in cells)
    per_method = Counter((c.row, c.column, c.stage in (1, 2)) for c in cells)
    assert {n for (_, _, tried), n in per_method.items() if tried} == {4}
    assert {n for (_, _, tried), n in per_method.items() if not tried} == {5}
    assert {c.seed for c in cells if c.stage < 3} == {5} and {c.seed for c in cells if c.stage == 3} == {0, 1, 2, 3, 4}


def test_what_is_repeated_is_the_best_trial_of_the_search_seed() -> None:
    table = _table()
    records = complete(table)
    best = choose(table.trials("nora", "cb", records, table.reused("cb", records)))
    assert best is not None
    repeated = [c for c in table.cells(records) if (c.row, c.column, c.stage) == ("nora", "cb", 3)]
    assert [c.settings for c in repeated] == [best.settings] * 5


def test_without_a_search_everything_waits_and_says_for_what() -> None:
    cells = _table().cells({})
    assert Counter((c.stage, c.waits_for) for c in cells) == {
        (1, None): 8,
        (2, "lora"): 2 * 6 * 4,
        (3, "its search"): 2 * 7 * 5,
    }

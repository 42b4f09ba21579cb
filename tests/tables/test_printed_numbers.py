"""The paper's printed numbers as data: complete, and each row's average is that of its means to the printed digit."""

from __future__ import annotations

import pytest

from nora.tables.printed import printed_grid

METHODS = ("prefix", "lora", "olora", "pissa", "nora", "nora_plus")
TASKS = ("sst2", "wsc", "boolq", "cb", "rte", "record", "multirc", "squad")


def test_table2_is_complete() -> None:
    assert set(printed_grid("table2")) == {(m, t) for m in METHODS for t in (*TASKS, "avg")}


@pytest.mark.parametrize("method", METHODS)
def test_the_printed_average_is_that_of_the_printed_means(method: str) -> None:
    grid = printed_grid("table2")
    mean = sum(grid[method, task].mean for task in TASKS) / len(TASKS)
    assert abs(mean - grid[method, "avg"].mean) <= 0.0501


def test_a_table_without_printed_numbers_has_none() -> None:
    assert printed_grid("no_such_table") == {}

"""The paper's printed numbers as data: complete, arithmetically consistent, and what conf runs at paper scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from nora.tables.methods import Table
from nora.tables.printed import printed_grid, printed_settings
from nora.tables.target import load_target

METHODS = ("prefix", "lora", "olora", "pissa", "nora", "nora_plus")
TASKS = ("sst2", "wsc", "boolq", "cb", "rte", "record", "multirc", "squad")
SETS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
# Rows of the test sets (LLM-Adapters), and of GSM8K: the paper's accuracies are shares of these.
SIZES = dict(zip(SETS, (3270, 1838, 1954, 10042, 1267, 2376, 1172, 500), strict=True))
GSM8K = 1319
TRUNCATED = {("llama_7b", "lora_p"): 76.418, ("llama2_7b", "lora_p"): 78.359}  # printed 76.41 and 78.35


def test_table2_is_complete() -> None:
    assert set(printed_grid("table2")) == {(m, t) for m in METHODS for t in (*TASKS, "avg")}


@pytest.mark.parametrize("method", METHODS)
def test_the_printed_average_is_that_of_the_printed_means(method: str) -> None:
    grid = printed_grid("table2")
    mean = sum(grid[method, task].mean for task in TASKS) / len(TASKS)
    assert abs(mean - grid[method, "avg"].mean) <= 0.0501


@pytest.mark.parametrize("model", ["llama_7b", "llama2_7b"])
def test_table4_is_complete_and_its_averages_are_those_of_its_rows(model: str) -> None:
    grid = printed_grid("table4", model)
    rows = ("lora", "lora_p", "nora", "nora_plus")
    assert set(grid) == {(m, s) for m in rows for s in (*SETS, "avg")}
    for row in rows:
        mean = sum(grid[row, name].mean for name in SETS) / len(SETS)
        if (model, row) in TRUNCATED:
            assert mean == pytest.approx(TRUNCATED[model, row], abs=0.0006)
            assert grid[row, "avg"].mean == int(100 * mean) / 100
        else:
            assert abs(mean - grid[row, "avg"].mean) <= 0.5 * 10 ** -grid[row, "avg"].digits + 1e-9, row
    quoted = {row for (row, _), value in grid.items() if value.quoted}
    assert quoted == ({"lora"} if model == "llama2_7b" else set())


def test_values_are_spelt_as_they_are_printed() -> None:
    assert printed_grid("table2")["nora", "rte"].text == "72.0 ± 1.3", "no digit is lost"
    assert printed_grid("table2")["prefix", "cb"].text == "71.6† ± 2.9"
    assert printed_grid("table4", "llama_7b")["lora", "arc_challenge"].text == "63.40"
    assert printed_grid("table4", "llama2_7b")["lora", "openbookqa"].text == "81.0‡"
    assert printed_grid("table9")["pissa", "gemma_7b"].text == "77.94‡"


def _is_share(percent: float, n: int) -> bool:
    """Whether some k of n gives the printed percentage, rounded or truncated at its second digit."""
    k = round(percent / 100 * n)
    return any(0 <= percent - 100 * j / n <= 0.00501 or 0 <= 100 * j / n - percent < 0.01 for j in (k - 1, k, k + 1))


def test_the_papers_own_accuracies_are_shares_of_the_test_sets() -> None:
    """A digit read wrongly shows on the sets that are small: of the values two digits allow, n = 500 has a fifth."""
    for model in ("llama_7b", "llama2_7b"):
        for (row, name), value in printed_grid("table4", model).items():
            if name != "avg" and not value.quoted:
                assert _is_share(value.mean, SIZES[name]), (model, row, name)
    table9 = printed_grid("table9")
    assert all(_is_share(value.mean, GSM8K) for value in table9.values())
    correct = {row: round(value.mean * GSM8K / 100) for (row, _), value in table9.items()}
    assert correct == {"lora": 1012, "pissa": 1028, "nora": 1037, "lora_p": 1016, "nora_plus": 1035}
    assert {row for (row, _), v in table9.items() if v.quoted} == {"pissa"}


def test_what_table5_prints_is_what_conf_searches_at_paper_scale(checkout: Path) -> None:
    table = load_target(checkout, "table2", ["scale=paper"])
    assert isinstance(table, Table)
    grid, printed = table.file.search.grid, printed_settings("table5")
    assert list(printed["batch_size"].values) == grid["lora"]["protocol.batch_size"]
    assert list(printed["xi"].values) == grid["nora"]["method.xi"] == grid["nora_plus"]["method.xi"]
    assert all(grid[m]["protocol.lr"] == list(printed["lr"].values) for m in grid if m != "prefix")
    assert [key for key, setting in printed.items() if setting.doubtful] == ["lr"]


def test_a_table_without_printed_numbers_has_none() -> None:
    assert printed_grid("no_such_table") == {} == printed_settings("no_such_table")
    assert printed_grid("table4", "llama_mini") == {}
    assert printed_settings("table2") == {}

"""The cells of a table: each id is that of ``nora run`` with the printed overrides; stage 2 waits for stage 1."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nora.config.spec import run_id
from nora.errors import UserError
from nora.kinds import compose_run
from nora.tables.methods import load_table
from nora.tables.target import load_target
from synthetic import complete, record_of


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_random_cells_have_the_id_of_their_printed_command(scale: str, checkout: Path) -> None:
    table = load_table(checkout, "table2", [f"scale={scale}"])
    first = [c for c in table.cells({}) if c.id]
    made = table.cells({str(c.id): record_of(c) for c in first})
    assert all(c.id for c in made) and len({c.row for c in made}) == 7
    for cell in random.Random(0).sample(made, 25):
        spec, _, found_scale = compose_run(checkout, cell.overrides)
        assert (run_id(spec), found_scale) == (cell.id, scale)


def test_counts_at_mini_and_the_budget_of_20_runs_per_task_and_seed(checkout: Path) -> None:
    table = load_table(checkout, "table2", ["task=cb", "seed=0"])
    assert len(table.cells({})) == 4 + 2 + 2 + 2 + 4 + 4 + 2 <= 20
    assert len(load_table(checkout, "table2").cells({})) == 20 * 8 * 3


def test_stage_2_waits_until_the_first_methods_search_is_complete(checkout: Path) -> None:
    table = load_table(checkout, "table2", ["scale=mini", "seed=0,1", "task=sst2,cb"])
    made = table.cells({})
    stage1 = [c for c in made if c.stage == 1]
    waiting = [c for c in made if c.waits_for]
    assert {c.row for c in stage1} == {"lora"} and len(stage1) == 2 * 2 * 4
    assert {c.waits_for for c in waiting} == {"lora"} and all(c.id is None for c in waiting)
    assert len(stage1) + len(waiting) == len(made)

    records = {str(c.id): record_of(c) for c in stage1}
    last = [c for c in stage1 if c.column == "cb"][-1]
    partly = table.cells({k: r for k, r in records.items() if k != last.id})
    assert {c.column for c in partly if c.waits_for} == {"cb"}, "one missing seed of one task holds up that task alone"

    opened = table.cells(records)
    assert len(opened) == len(made) and not any(c.waits_for for c in opened)
    best = table.chosen("lora", "cb", records)
    assert best is not None
    sizes = {c.settings["protocol.batch_size"] for c in opened if c.column == "cb" and c.row != "lora"}
    assert sizes == {best["protocol.batch_size"]}, "LoRA's batch size is taken over"


def test_the_choice_is_the_best_dev_accuracy_averaged_over_seeds(checkout: Path) -> None:
    """Recomputed from the records by hand; the test metric is not looked at."""
    table = load_table(checkout, "table2", ["seed=0,1", "task=cb"])
    records = complete(table)
    for method in ("lora", "nora"):
        means: dict[tuple[object, ...], list[float]] = {}
        chosen_batch = None
        if method != "lora":
            lora = table.chosen("lora", "cb", records)
            assert lora is not None
            chosen_batch = lora["protocol.batch_size"]
        for r in records.values():
            if r.spec["method"]["name"] == method:
                if chosen_batch in (None, r.spec["protocol"]["batch_size"]):
                    key = (r.spec["protocol"]["batch_size"], r.spec["protocol"]["lr"], r.spec["method"].get("xi"))
                    means.setdefault(key, []).append(r.metrics["dev"]["accuracy"])
        best = max(means, key=lambda k: sum(means[k]) / 2)
        found = table.chosen(method, "cb", records)
        assert found is not None
        assert (found["protocol.batch_size"], found["protocol.lr"], found.get("method.xi")) == best


def test_a_further_override_reaches_every_cell_and_its_id(checkout: Path) -> None:
    table = load_table(checkout, "table2", ["task=cb", "seed=0", "method=lora", "protocol.epochs=1"])
    for cell in table.cells({}):
        assert cell.spec is not None and cell.spec.protocol.epochs == 1
        assert run_id(compose_run(checkout, cell.overrides)[0]) == cell.id


def test_a_typed_value_takes_the_place_of_the_searched_ones_where_a_method_has_the_setting(checkout: Path) -> None:
    """`method.xi=0.05` was an error for LoRA, which has no ξ; `protocol.lr` was typed and the grid's values ran."""
    table = load_table(checkout, "table4", ["scale=paper", "method.xi=0.05", "protocol.lr=1e-4"])
    cells = table.cells({})
    assert {(c.row, c.spec.method.xi) for c in cells if c.spec is not None} == {
        ("lora", None), ("lora_p", None), ("nora", 0.05), ("nora_plus", 0.05)
    }  # fmt: skip
    assert {c.spec.protocol.lr for c in cells if c.spec is not None} == {1e-4}
    for cell in cells:
        assert run_id(compose_run(checkout, cell.overrides)[0]) == cell.id


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["task=xx"], "task: given 'xx', this table has sst2, wsc, boolq, cb, rte"),
        (["method=norra"], "did you mean nora?"),
        (["seed=9"], "seed: given '9', this table has 0, 1, 2"),
        (["scale=huge"], "scale: given 'huge'"),
        (["search=best"], "search: given 'best', this table has grid, chosen"),
    ],
)
def test_wrong_axes(overrides: list[str], message: str, checkout: Path) -> None:
    with pytest.raises(UserError) as error:
        load_table(checkout, "table2", overrides)
    assert message in str(error.value)


def test_an_unknown_table_and_a_choice_that_is_not_there(checkout: Path) -> None:
    with pytest.raises(UserError, match="TARGET: given 'tabel2', did you mean table2. allowed .*table2.*"):
        load_target(checkout, "tabel2")
    with pytest.raises(UserError, match="given 'nonsense', required key=value"):
        load_target(checkout, "table2", ["nonsense"])
    table = load_table(checkout, "table2", ["search=chosen", "scale=smoke"])
    with pytest.raises(UserError, match="not there yet"):
        table.cells({})

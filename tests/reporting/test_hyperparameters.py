"""Hyper-parameter tables read every column's own settings."""

from __future__ import annotations

from pathlib import Path

from nora.reporting.layouts.hyperparameters import build
from nora.tables.methods import Table
from nora.tables.target import load_target


def test_a_setting_that_differs_between_columns_is_printed_for_each(checkout: Path) -> None:
    """Table 7 said ξ = 0.02 for NoRA+ on LLaMA2, which runs with 0.1 (the released script's)."""
    table = load_target(checkout, "table7", ["scale=paper"])
    assert isinstance(table, Table)
    document = build(table, {})
    printed = {line.label: [e.text for e in line.entries] for line in document.blocks[0].lines}
    column = document.blocks[0].columns.index("ξ")
    assert {label: entries[column] for label, entries in printed.items()} == {
        "LoRA": "–", "LoRA-P": "–", "NoRA": "0.02", "NoRA+, LLaMA-7B": "0.02", "NoRA+, LLaMA2-7B": "0.1"
    }  # fmt: skip
    planned = {(c.row, c.column): c.spec.method.xi for c in table.cells({}) if c.spec is not None}
    assert planned["nora_plus", "llama2_7b"] == 0.1 and planned["nora_plus", "llama_7b"] == 0.02

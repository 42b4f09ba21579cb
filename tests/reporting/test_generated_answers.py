"""Tables of generated answers (Table 9, the ablation) from made-up records: what stands in and below them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nora.reporting.collation import build_artefact
from nora.reporting.document import Document
from nora.reporting.reported import answer_notes
from nora.store.record import Record
from nora.tables.methods import Table, load_table

from synthetic import complete, record_of  # isort: skip


def _records(checkout: Path, name: str, scores: dict[str, Any], **changes: Any) -> dict[str, Record]:
    """Every cell of a table with the same test scores; ``changes`` replace metrics."""
    table = load_table(checkout, name, ["scale=mini"])
    made = [record_of(cell, **scores) for cell in table.cells({})]
    return {r.id: Record(r.id, {**r.result, "metrics": {**r.metrics, **changes}}, r.run) for r in made}


def _document(checkout: Path, name: str, records: dict[str, Record], *words: str) -> Document:
    return build_artefact(load_table(checkout, name, ["scale=mini", *words]), records)


def _gsm8k(accuracy: float, unanswered: int) -> dict[str, Any]:
    sets = {"gsm8k": {"accuracy": accuracy, "n": 64, "unanswered": unanswered}}
    return {"mean_accuracy": accuracy, "sets": sets}


def test_table_9_says_how_sure_it_is_and_how_many_answers_are_none(checkout: Path) -> None:
    records = _records(checkout, "table9", _gsm8k(0.5, 8))
    notes = "\n".join(_document(checkout, "table9", records).notes)
    assert "64 questions per set: a single run's accuracy has a binomial standard error of up to 6.2 points." in notes
    assert "40 of 320 answers match no pattern of their set; they count as wrong." in notes
    assert "hyper-parameters chosen on dev, the last checkpoint scored on test" in notes and "own train" not in notes


def test_where_all_are_the_same_none_is_the_best(checkout: Path) -> None:
    same = _document(checkout, "table9", _records(checkout, "table9", _gsm8k(0.0, 64)))
    assert not any(entry.best for line in same.blocks[0].lines for entry in line.entries)
    records = _records(checkout, "table9", _gsm8k(0.0, 64))
    (better,) = [r for r in records.values() if r.spec["method"]["name"] == "lora_p"]
    better.metrics["test"]["mean_accuracy"] = 0.25  # type: ignore[index]
    lines = _document(checkout, "table9", records).blocks[0].lines
    assert not any(entry.best for line in lines for entry in line.entries), "one seed shows nothing"


def test_one_column_has_no_average_and_free_text_no_majority(checkout: Path) -> None:
    records = _records(checkout, "table9", _gsm8k(0.1, 3), majority_accuracy=None, majority=None)
    block = _document(checkout, "table9", records).blocks[0]
    assert len(block.columns) == 1 and all(len(line.entries) == 1 for line in block.lines)
    assert [line.label for line in block.lines][-1] == "Zero-shot base"
    assert not any(line.label == "Majority class" for line in block.lines)


@pytest.mark.parametrize(
    ("word", "shown"), [("method=nora", ["NoRA"]), ("method=lora", ["LoRA", "Majority class", "Zero-shot base"])]
)
def test_a_table_narrowed_to_one_method_has_the_references_its_records_have(
    word: str, shown: list[str], checkout: Path
) -> None:
    records = _records(checkout, "table9", _gsm8k(0.1, 3))
    assert [line.label for line in _document(checkout, "table9", records, word).blocks[0].lines] == shown


def test_the_ablation_keeps_the_checkpoint_of_lowest_dev_loss(checkout: Path) -> None:
    sets = {"boolq": {"accuracy": 0.25, "n": 24, "unanswered": 3}, "piqa": {"accuracy": 0.5, "n": 20, "unanswered": 0}}
    records = _records(checkout, "ablation", {"mean_accuracy": 0.375, "sets": sets})
    document = _document(checkout, "ablation", records)
    notes = "\n".join(document.notes)
    assert "the checkpoint of lowest dev loss scored on test" in notes and "avg" not in document.blocks[0].columns
    assert "27 of 396 answers match no pattern of their set (BoolQ 27); they count as wrong." in notes
    assert "20 to 24 questions per set" in notes and "11.2 points on the smallest set" in notes


def test_scored_candidates_have_no_such_notes(narrow: Table, checkout: Path) -> None:
    assert answer_notes(list(complete(narrow).values())) == []

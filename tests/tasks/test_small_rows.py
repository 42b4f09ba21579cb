"""The real rows of the small scale: the tasks read every one of them, and both splits know the same answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nora import tasks

_SMALL = Path(__file__).resolve().parents[2] / "data" / "small"


def _rows(name: str, stem: str) -> list[dict[str, Any]]:
    text = gzip.decompress((_SMALL / name / f"{stem}.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", sorted({path.name for path in _SMALL.iterdir()} & {*tasks.names("superglue")}))
def test_every_row_becomes_an_example(name: str) -> None:
    task, golds = tasks.load("superglue", name), []
    for split in ("train", "validation"):
        examples = [task.build(row) for row in _rows(name, split)]
        assert examples
        golds.append({e.candidates[e.gold] for e in examples} if len({e.candidates for e in examples}) == 1 else set())
    assert golds[0] == golds[1]


def test_every_answer_of_the_eight_sets_is_a_listed_one_and_no_test_row_is_trained_on() -> None:
    task = tasks.load("instruct", "commonsense")
    for name, own in task.SETS.items():
        train, test = (
            [task.training(row, name) for row in _rows("commonsense", f"{name}.{p}")] for p in ("train", "test")
        )
        assert len(train) == 216 and len(test) == 128
        assert {row.answer for row in train} <= {*own.answers} and {row.answer for row in test} <= {*own.answers}
        assert not {row.prompt for row in train} & {row.prompt for row in test}, name


def test_every_word_problem_has_its_number() -> None:
    task = tasks.load("instruct", "gsm8k")
    trained = [task.training(row, "metamath") for row in _rows("gsm8k", "standin")]
    asked = [[task.testing(row, "gsm8k") for row in _rows("gsm8k", stem)] for stem in ("train", "test")]
    assert (len(trained), *map(len, asked)) == (800, 64, 128)
    assert all(task.extract(row.target) for row in trained) and all(row.answer for rows in asked for row in rows)
    spelt = [{"".join(filter(str.isalnum, row.prompt.lower())) for row in rows} for rows in (trained, asked[1])]
    assert not spelt[0] & spelt[1], "no test question is trained on"

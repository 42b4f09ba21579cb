"""Prompts of the five longer tasks on real shipped rows: both ends byte for byte, the passage as it stands in the row.

The expected strings were typed from the templates of MeZO's few-shot script (princeton-nlp/MeZO, large_models,
templates.py), not produced by the code under test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nora import tasks

ROOT = Path(__file__).resolve().parents[2]


def row(name: str, split: str, index: int) -> dict[str, Any]:
    lines = (ROOT / "data" / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = json.loads(lines[index])
    return found


def example(name: str, split: str, index: int) -> Any:
    return tasks.load("superglue", name).build(row(name, split, index))


def test_wsc() -> None:
    built = example("wsc", "train", 0)
    assert built.prompt == (
        "Mark told Pete many lies about himself, which Pete included in his book. He should have been more skeptical.\n"
        'In the previous sentence, does the pronoun "he" refer to Mark? Yes or No?\n'
    )
    assert (built.candidates, built.correct) == (("No", "Yes"), (0,))


def test_boolq_capitalises_the_question_and_adds_its_mark() -> None:
    built = example("boolq", "train", 0)
    assert built.prompt.startswith("Persian language -- Persian (/ˈpɜːrʒən, -ʃən/), also known by its endonym Farsi")
    assert built.prompt.endswith(
        "which itself evolved from the Aramaic alphabet. Do iran and afghanistan speak the same language?\n"
    )
    assert (built.candidates, built.correct) == (("Yes", "No"), (0,))


@pytest.mark.parametrize(
    "fields, correct", [({"label": 1}, 0), ({"label": 0}, 1), ({"answer": True}, 0), ({"answer": False}, 1)]
)
def test_boolq_reads_both_spellings_of_the_answer(fields: dict[str, Any], correct: int) -> None:
    built = tasks.load("superglue", "boolq").build({"question": "is it so?", "passage": "It is.", **fields})
    assert (built.prompt, built.correct) == ("It is. Is it so?\n", (correct,))


def test_multirc() -> None:
    built = example("multirc", "train", 0)
    assert built.prompt.startswith("While this process moved along, diplomacy continued its rounds. Direct pressure")
    assert built.prompt.endswith(
        'Bin Laden and deal with another issue or two." The U.S. effort continued. \n'
        "Question: What did the high-level effort to persuade Pakistan include?\n"
        'I found this answer "Children, Gerd, or Dorian Popa". Is that correct? Yes or No?\n'
    )
    assert (built.candidates, built.correct) == (("No", "Yes"), (0,))


def test_record_puts_each_entity_into_the_query_and_dashes_for_highlights() -> None:
    built = example("record", "train", 0)
    assert built.prompt.startswith("By Hamish Mackay Goals from Diego Costa and Kurt Zouma ensured Chelsea came back")
    assert built.prompt.endswith(
        "\n- Branislav Ivanovic had a goal controversially disallowed\n"
        "- Fernando Torres missed a clear cut chance to make it 3-1\n-"
    )
    assert "@highlight" not in built.prompt and "@placeholder" not in "".join(built.candidates)
    start = " Speaking after the game, Mourinho said: 'The important thing is to give competition to the players, "
    assert built.candidates[0] == start + "the best thing was that Blues made it difficult."
    assert built.candidates[built.gold] == start + "the best thing was that Olimpija Ljubljana made it difficult."
    assert len(built.candidates) == len(row("record", "train", 0)["entities"])


def test_record_counts_every_answer_and_trains_on_the_first() -> None:
    built = tasks.load("superglue", "record").build(
        {"passage": "P", "query": "@placeholder won", "entities": ["A", "B", "C"], "answers": ["C", "A"]}
    )
    assert built.correct == (2, 0) and built.gold == 2


def test_squad_ends_with_the_newline_where_generation_stops() -> None:
    built = example("squad", "validation", 0)
    assert built.prompt.startswith("Title: Harvard_University\nContext: Older than The Game by 23 years, the Harvard")
    assert built.prompt.endswith(
        "National Championships in 2003.\n"
        'Question: Harvard - Yale Regatta predates "The Game" by how many years?\nAnswer:'
    )
    assert (built.candidates, built.references) == ((" 23 years\n",), ("23 years", "23", "23"))


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("record", {"passage": "P", "query": "q", "entities": ["A"], "answers": ["B"]}, "required the first among"),
        ("squad", {"title": "", "context": "", "question": "q", "answers": {"text": []}}, "required at least one"),
        ("boolq", {"question": "q", "passage": "p"}, "a row lacks label"),
        ("wsc", {"text": "t", "span1_text": "a", "span2_text": "b", "label": 2}, "given label 2, required 0 to 1"),
    ],
)
def test_rows_that_do_not_fit(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.load("superglue", name).build(given)

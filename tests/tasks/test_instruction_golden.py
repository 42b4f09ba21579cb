"""LLM-Adapters' and PiSSA's texts to the byte, on shipped rows; expected strings typed from the released templates."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from nora.tasks import instruction
from nora.tasks.instruct import commonsense, gsm8k

DATA = Path(__file__).resolve().parents[2] / "data"


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_the_two_wrappers_to_the_byte() -> None:
    row = _rows("commonsense/boolq.test.jsonl")[0]
    made = instruction.build(row, set="boolq")
    question = (
        "Please answer the following question with true or false, question: does ethanol take more energy make "
        "that produces?\n\nAnswer format: true/false"
    )
    assert made.prompt + made.target == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n"
        "\n"
        "                ### Instruction:\n"
        f"                {question}\n"
        "                \n"
        "                ### Response:\n"
        "                the correct answer is false"
    )
    assert made.question == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n"
        "\n"
        "                ### Instruction:\n"
        f"                {question}\n"
        "\n"
        "                ### Response:\n"
        "                "
    )


@pytest.mark.parametrize("name", commonsense.SETS)
def test_every_shipped_row_gives_back_its_own_answer(name: str) -> None:
    """The right output, put where a generation would stand, is extracted as the gold answer."""
    rows = _rows(f"commonsense/{name}.test.jsonl") + _rows(f"commonsense/{name}.train.jsonl")
    assert len(rows) == 32 + 56
    for row in rows:
        made = commonsense.testing(row, name)
        assert row["output"] == f"the correct answer is {row['answer']}"
        assert made.answer in commonsense.SETS[name].answers
        assert commonsense.extract(made.question + made.target, name) == made.answer
        # The question names every answer; only what follows the last marker may count.
        assert commonsense.extract(made.question + "I do not know", name) == ""


def test_an_answer_is_the_first_hit_and_case_counts() -> None:
    text = "### Response: maybe Answer1, no: answer3 or answer2"
    assert instruction.extract(text, ("answer1", "answer2", "answer3")) == "answer3"
    assert instruction.extract("answer1 ### Response: answer2 ### Response: none", ("answer1", "answer2")) == ""


def test_the_counts_of_the_mixture_add_up() -> None:
    """8 training sets make the 170,420 rows of the joined file; 22,419 test rows (paper, Appendix E)."""
    sets = commonsense.SETS.values()
    assert sum(s.num_train_rows for s in sets) == commonsense.NUM_TRAIN_ROWS == 170_420
    assert sum(s.num_test_rows for s in sets) == 22_419


def test_pissas_template_to_the_byte() -> None:
    made = gsm8k.training({"query": "What is 1+1?", "response": "It is 2.\nThe answer is: 2"}, "metamath")
    assert made.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhat is 1+1?\n\n### Response:"
    )
    assert made.target == "It is 2.\nThe answer is: 2" and made.answer == "2"
    tested = gsm8k.testing(_rows("gsm8k/test.jsonl")[0], "gsm8k")
    assert tested.question.endswith("### Response: Let's think step by step.")
    assert tested.answer == "18"


def _released_extraction(completion: str) -> int | None:
    """The rule as MetaMath's and PiSSA's evaluation scripts write it, step by step."""
    parts = completion.split("The answer is: ")
    if len(parts) == 1:
        return None
    match = re.search(r"[\-+]?\d*[\.,/]?\d+", parts[-1].strip())
    if match is None:
        return None
    found = match.group()
    if "/" in found:
        numerator, denominator = found.split("/")[0], found.split("/")[1]
        if not (numerator.strip("+-").isdigit() and denominator.isdigit()):
            return None
        return round(float(numerator) if denominator == "0" else float(Fraction(found)))
    number = float(found.replace(",", ""))
    return None if number == float("inf") else round(number)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is: 18", "The answer is: $18.", "The answer is: -3", "The answer is: +4.", "The answer is: 2.5",
        "The answer is: 3.5", "The answer is: 1,234", "The answer is: 1,234,567", "The answer is: 1/2",
        "The answer is: 7/2", "The answer is: 3/0", "The answer is: /5", "The answer is: .5", "The answer is: none",
        "no marker 18", "The answer is: 1 The answer is: 2", "The answer is 18", "The answer is: x = 12 apples",
    ],
)  # fmt: skip
def test_extraction_is_the_released_rule(text: str) -> None:
    expected = _released_extraction(text)
    assert gsm8k.extract(text) == ("" if expected is None else str(expected))


def test_every_shipped_gold_is_an_integer_and_stand_in_rows_answer_themselves() -> None:
    for name in ("test", "train"):
        for row in _rows(f"gsm8k/{name}.jsonl"):
            assert gsm8k.testing(row, "gsm8k").answer == str(
                int(row["answer"].split("####")[1].strip().replace(",", ""))
            )
    for row in _rows("gsm8k/standin.jsonl"):
        made = gsm8k.training(gsm8k.from_llm_adapters(row), "metamath")
        assert made.target.count(gsm8k.MARKER) == 1
        assert made.answer == str(row["answer"]).removesuffix(".0")


@pytest.mark.parametrize("row", [{"instruction": "x"}, {"instruction": "x", "input": "y", "output": "", "answer": ""}])
def test_a_row_that_does_not_fit_is_refused(row: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="boolq: "):
        instruction.build(row, set="boolq")

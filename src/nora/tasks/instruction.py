"""LLM-Adapters' prompt wrappers and its reading of an answer, to the byte.

The two wrappers differ in their blanks, as they do in LLM-Adapters, DoRA and NoRA (kept here for fidelity): training
has two blanks after the first sentence and an indented empty line, evaluation one blank and an empty one. Only the
first line of a longer instruction is indented.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nora.tasks.example import Example, Row, require_fields

FIELDS = ("instruction", "input", "output", "answer")
_INDENT = " " * 16
_SENTENCE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_MARKER = "### Response:"


@dataclass(frozen=True)
class Instruction:
    """One row: ``prompt`` + ``target`` is the training text, ``question`` what generation starts from."""

    prompt: str
    target: str
    question: str
    answer: str
    """Gold, as the extraction spells it."""
    set: str
    """The data set the row is of."""


def training_prompt(instruction: str) -> str:
    """Everything before the output in the training text."""
    return (
        f"{_SENTENCE}  \n\n{_INDENT}### Instruction:\n{_INDENT}{instruction}\n{_INDENT}\n{_INDENT}{_MARKER}\n{_INDENT}"
    )


def evaluation_prompt(instruction: str) -> str:
    """What the model continues; it ends with sixteen blanks."""
    return f"{_SENTENCE} \n\n{_INDENT}### Instruction:\n{_INDENT}{instruction}\n\n{_INDENT}{_MARKER}\n{_INDENT}"


def response(text: str) -> str:
    """The text after the last ``### Response:``, stripped; all of it where there is none."""
    return text.rsplit(_MARKER, 1)[-1].strip()


def extract(text: str, answers: Sequence[str]) -> str:
    """The first of ``answers`` in the response, case-sensitive; "" where none of them is there."""
    found = re.search("|".join(map(re.escape, answers)), response(text))
    return found[0] if found else ""


def listed(row: Instruction, answers: Sequence[str]) -> Example:
    """The question with each answer that its "Answer format: a/b/c" lists, as the training texts write one."""
    given = row.question.rsplit("Answer format:", 1)[-1]
    candidates = [answer for answer in answers if answer in given]
    texts = tuple(f"the correct answer is {answer}" for answer in candidates)
    return Example(row.question, texts, (candidates.index(row.answer),))


def build(row: Row, *, set: str) -> Instruction:
    """A row of LLM-Adapters' JSON; ValueError where a field is missing or ``input`` is not empty."""
    require_fields(row, FIELDS, task=set)
    if row["input"]:
        raise ValueError(f"{set}: given input {row['input']!r}, required '' (the wrapper has no place for it)")
    instruction = str(row["instruction"])
    return Instruction(
        training_prompt(instruction), str(row["output"]), evaluation_prompt(instruction), str(row["answer"]), set
    )

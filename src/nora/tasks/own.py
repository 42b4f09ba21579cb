"""A task made of one's own rows: a prompt of named fields, a label map or candidates, a metric by its name.

{"text": "a joy", "label": "pos"}, prompt "{text}\\nIt was", labels {pos: " great", neg: " bad"}
→ "a joy\\nIt was" + " great"
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from nora.tasks.example import Example, Row
from nora.tasks.instruction import Instruction

METRICS = {"choice": ("accuracy", "macro_f1"), "instruct": ("accuracy", "f1")}


def fields_of(template: str) -> list[str]:
    """The fields a template names; ValueError for one that is none ("{{" and "}}" are braces)."""
    names = []
    for _, name, spec, conversion in Formatter().parse(template):
        if name is not None:
            if not name or spec or conversion:
                raise ValueError(f"given {template!r}, required fields as {{name}} (a brace itself is {{{{ or }}}})")
            names.append(name)
    return names


def text_of(row: Row, field: str) -> str:
    """A field as text; ValueError for one that is not there, is null, or holds a list or an object."""
    if field not in row:
        raise ValueError(f"lacks {field}; it has {', '.join(map(str, row))}")
    value = row[field]
    if value is None or isinstance(value, list | tuple | Mapping):
        raise ValueError(f"{field} is {'null' if value is None else 'no text'} ({str(value)[:40]})")
    return value if isinstance(value, str) else json.dumps(value)


def fill(template: str, row: Row) -> str:
    """The template with the row's fields; a name is a key of the row, whatever stands in it."""
    parts = Formatter().parse(template)
    return "".join(literal + (text_of(row, name) if name is not None else "") for literal, name, _, _ in parts)


@dataclass(frozen=True)
class Choice:
    """What a module of the few-shot tasks offers, from the keys of a task with ``source: file``."""

    name: str
    prompt: str
    label: str
    """The field with the right answer: a key of ``labels``, or an index or a text of ``candidates``."""
    labels: Mapping[str, str] | None
    candidates: str | None
    """The field with the row's own list of answers."""
    METRIC: str
    LOSS = "classification"
    TOKENS = 100

    @property
    def LABEL(self) -> str:
        return self.name

    @property
    def OPTIONS(self) -> int:
        return len(self.labels or ()) or 4

    def build(self, row: Row) -> Example:
        """ValueError where the row has no such field or no such answer."""
        prompt = fill(self.prompt, row)
        if self.candidates is None:
            given, answers = text_of(row, self.label), dict(self.labels or {})
            if given not in answers:
                raise ValueError(f"{self.label} is {given!r}, which is none of the labels {', '.join(answers)}")
            return Example(prompt, tuple(answers.values()), (list(answers).index(given),))
        texts = row.get(self.candidates)
        if not isinstance(texts, list | tuple) or len(texts) < 2 or not all(isinstance(t, str) and t for t in texts):
            raise ValueError(f"{self.candidates} is {str(texts)[:40]!r}, required a list of at least two texts")
        if len(set(texts)) < len(texts):
            raise ValueError(f"{self.candidates} has one answer twice")
        right = text_of(row, self.label)
        if right in texts:
            return Example(prompt, tuple(texts), (list(texts).index(right),))
        if right not in map(str, range(len(texts))):
            raise ValueError(f"{self.label} is {right!r}, required one of {self.candidates} or 0 to {len(texts) - 1}")
        return Example(prompt, tuple(texts), (int(right),))


@dataclass(frozen=True)
class Instruct:
    """What a module of the instruct tasks offers, from the keys of a task with ``source: file``."""

    name: str
    prompt: str
    response: str
    answer: str
    """Gold, as the answer is to be spelt."""
    answer_after: str | None
    """The answer is what follows this in the generated text; null: all of it."""
    METRIC: str
    READS_PROMPT = False
    DEV_IS_SCORED = False
    TEXT_TOKENS, ANSWER_TOKENS, NUM_TEST_ROWS = 150, 50, 10**9

    @property
    def LABEL(self) -> str:
        return self.name

    @property
    def SETS(self) -> tuple[str]:
        return (self.name,)

    def training(self, row: Row, set: str) -> Instruction:
        prompt, target = fill(self.prompt, row), fill(self.response, row)
        return Instruction(prompt, target, prompt, fill(self.answer, row).strip(), set)

    testing = training

    def extract(self, text: str, set: str) -> str:
        """The answer of a generated text; "" where the words it follows are not there."""
        del set
        if self.answer_after is None:
            return text.strip()
        return text.rsplit(self.answer_after, 1)[1].strip() if self.answer_after in text else ""


def task_of(said: Mapping[str, Any]) -> Choice | Instruct:
    """The task of the keys of a spec or record."""
    name, prompt, metric = str(said.get("name")), said["prompt"], said["metric"]
    if said["suite"] == "choice":
        return Choice(name, prompt, said["label"], said.get("labels"), said.get("candidates"), metric)
    response = said["response"]
    metric = {"accuracy": "mean_accuracy"}.get(metric, metric)
    return Instruct(name, prompt, response, said.get("answer") or response, said.get("answer_after"), metric)

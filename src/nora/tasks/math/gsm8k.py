"""GSM8K as PiSSA scores it: the template with " Let's think step by step.", the number after "The answer is: ".

The pattern keeps one separator only: "1,234,567" is read as 1234 and is wrong. Kept, for comparability.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from nora.tasks.example import HubSource, require_fields
from nora.tasks.instruction import Instruction
from nora.tasks.math.metamath import MARKER, prompt

SOURCE = HubSource("openai/gsm8k", "main", "train", "test", 7473, 1319)
FIELDS = ("question", "answer")
MAX_NEW_TOKENS = 1024
_NUMBER = re.compile(r"[\-+]?\d*[\.,/]?\d+")


def question_prompt(question: str) -> str:
    """What the model continues."""
    return prompt(question) + " Let's think step by step."


def gold(answer: str) -> str:
    """The integer after ``####``, without commas; ValueError where there is none."""
    _, marker, tail = answer.rpartition("#### ")
    number = tail.strip().replace(",", "")
    if not marker or not re.fullmatch(r"[-+]?\d+", number):
        raise ValueError(f"gsm8k: given an answer that ends {answer[-30:]!r}, required '#### INTEGER'")
    return number


def extract(text: str) -> str:
    """The first number after the last marker, rounded to an integer; "" where there is no marker or no number."""
    if MARKER not in text:
        return ""
    found = _NUMBER.search(text.rsplit(MARKER, 1)[-1])
    if found is None:
        return ""
    spelt = found[0].replace(",", "")
    numerator, _, denominator = spelt.partition("/")
    try:
        # As the protocol's code has it, n/0 is read as n.
        value = float(Fraction(spelt)) if denominator.strip("0") else float(numerator)
    except ValueError:
        return ""
    return str(round(value)) if math.isfinite(value) else ""


def build(row: Mapping[str, Any]) -> Instruction:
    """A test row."""
    require_fields(row, FIELDS, task="gsm8k")
    question = str(row["question"])
    return Instruction(
        prompt(question), str(row["answer"]), question_prompt(question), gold(str(row["answer"])), "gsm8k"
    )

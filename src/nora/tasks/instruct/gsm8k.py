"""Grade-school math: MetaMathQA to train on, GSM8K to answer (paper, Table 9), as PiSSA's code does it.

    {"query": "What is …?", "response": "… The answer is: 110"} → template with the query + response + end of sequence

MetaMathQA: the first 100,000 rows of the file, no shuffle before they are taken; there is no blank between
"### Response:" and the response. GSM8K: the same template with " Let's think step by step.", and the number after
"The answer is: ". The pattern keeps one separator only: "1,234,567" is read as 1234 and is wrong. Kept, for
comparability.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from nora.tasks.example import HubSource, Row, require_fields
from nora.tasks.instruction import Instruction

LABEL = "GSM8K"
METRIC = "mean_accuracy"
READS_PROMPT = False
DEV_IS_SCORED = True
"""Dev rows are answered, not only their loss taken: learning rate and ξ are chosen by them."""
TEXT_TOKENS, ANSWER_TOKENS = 250, 200
"""Rough means of the real rows: tokens of a training text, tokens an answer takes."""
SOURCES = {
    "train": HubSource("meta-math/MetaMathQA", None, "train", "train", 395000, 395000),
    "test": HubSource("openai/gsm8k", "main", "train", "test", 7473, 1319),
}
NUM_TEST_ROWS = 1_319
SETS = ("gsm8k",)
TRAIN_FIELDS = ("query", "response")
TEST_FIELDS = ("question", "answer")
MARKER = "The answer is: "
_NUMBER = re.compile(r"[\-+]?\d*[\.,/]?\d+")
_TEMPLATE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{query}\n\n### Response:"
)


def prompt(query: str) -> str:
    """Everything before the response."""
    return _TEMPLATE.format(query=query)


def training(row: Row, set: str) -> Instruction:
    """A row of MetaMathQA; a row of LLM-Adapters' math JSON (mini scale) is put into its form first. The
    end-of-sequence token is the encoder's to add. Gold: what stands after the marker."""
    del set
    row = row if "query" in row else from_llm_adapters(row)
    require_fields(row, TRAIN_FIELDS, task="metamath")
    start, target = prompt(str(row["query"])), str(row["response"])
    answer = target.rsplit(MARKER, 1)[-1].strip() if MARKER in target else ""
    return Instruction(start, target, start, answer, "metamath")


def from_llm_adapters(row: Row) -> dict[str, str]:
    """A row of LLM-Adapters' math JSON in MetaMathQA's form: the stand-in at mini scale, and marked as one.

    Its rationales end "The answer is X." in many spellings; the marker with the row's own number is put in its place.
    """
    require_fields(row, ("instruction", "output", "answer"), task="math_llm_adapters")
    rationale = str(row["output"]).strip().removeprefix("A:").split("The answer is", 1)[0].strip()
    answer = str(row["answer"]).removesuffix(".0")
    return {"query": str(row["instruction"]), "response": f"{rationale}\n{MARKER}{answer}"}


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


def testing(row: Row, set: str) -> Instruction:
    """A row of GSM8K."""
    del set
    require_fields(row, TEST_FIELDS, task="gsm8k")
    question, answer = str(row["question"]), str(row["answer"])
    return Instruction(prompt(question), answer, question_prompt(question), gold(answer), "gsm8k")


def extract(text: str, set: str = "gsm8k") -> str:
    """The first number after the last marker, rounded to an integer; "" where there is no marker or no number."""
    del set
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

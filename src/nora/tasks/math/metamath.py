"""MetaMathQA as PiSSA trains on it: the first 100,000 rows of the file, no shuffle before they are taken.

    {"query": "What is …?", "response": "… The answer is: 110"} → template with the query + response + end of sequence

There is no blank between "### Response:" and the response.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nora.tasks.example import HubSource, require_fields
from nora.tasks.instruction import Instruction

SOURCE = HubSource("meta-math/MetaMathQA", None, "train", "train", 395000, 395000)
FIELDS = ("query", "response")
NUM_TRAIN_ROWS = 100_000
MARKER = "The answer is: "
_TEMPLATE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{query}\n\n### Response:"
)


def prompt(query: str) -> str:
    """Everything before the response."""
    return _TEMPLATE.format(query=query)


def build(row: Mapping[str, Any]) -> Instruction:
    """A training row; the end-of-sequence token is the encoder's to add. Gold: what stands after the marker."""
    require_fields(row, FIELDS, task="metamath")
    start, target = prompt(str(row["query"])), str(row["response"])
    return Instruction(
        start, target, start, target.rsplit(MARKER, 1)[-1].strip() if MARKER in target else "", "metamath"
    )


def from_llm_adapters(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of LLM-Adapters' math JSON in MetaMathQA's form: the stand-in at mini scale, and marked as one.

    Its rationales end "The answer is X." in many spellings; the marker with the row's own number is put in its place.
    """
    require_fields(row, ("instruction", "output", "answer"), task="math_llm_adapters")
    rationale = str(row["output"]).strip().removeprefix("A:").split("The answer is", 1)[0].strip()
    answer = str(row["answer"]).removesuffix(".0")
    return {"query": str(row["instruction"]), "response": f"{rationale}\n{MARKER}{answer}"}

"""Commonsense reasoning: one mixture to train on, eight sets to answer (paper, Table 4)."""

from __future__ import annotations

from dataclasses import dataclass

from nora.tasks import instruction
from nora.tasks.example import Example, Row
from nora.tasks.instruction import Instruction


@dataclass(frozen=True)
class AnswerSet:
    """One of the sets, as LLM-Adapters asks it (BoolQ without its passage)."""

    label: str
    folder: str
    answers: tuple[str, ...]
    num_train_rows: int
    num_test_rows: int


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{i}" for i in range(1, count + 1))


LABEL = "commonsense"
METRIC = "mean_accuracy"
READS_PROMPT = True
"""The extraction looks at prompt and answer together, after the last marker."""
DEV_IS_SCORED = False
TEXT_TOKENS, ANSWER_TOKENS = 144, 8
"""Rough means of the real rows: tokens of a training text, tokens an answer takes."""
NUM_TEST_ROWS = 22_419
SETS = {
    "boolq": AnswerSet("BoolQ", "boolq", ("true", "false"), 9_427, 3_270),
    "piqa": AnswerSet("PIQA", "piqa", _numbered("solution", 2), 16_113, 1_838),
    "social_i_qa": AnswerSet("SIQA", "social_i_qa", _numbered("answer", 5), 33_410, 1_954),
    "hellaswag": AnswerSet("HS", "hellaswag", _numbered("ending", 4), 39_905, 10_042),
    "winogrande": AnswerSet("WG", "winogrande", _numbered("option", 2), 63_238, 1_267),
    "arc_easy": AnswerSet("ARC-e", "ARC-Easy", _numbered("answer", 5), 2_251, 2_376),
    "arc_challenge": AnswerSet("ARC-c", "ARC-Challenge", _numbered("answer", 5), 1_119, 1_172),
    "openbookqa": AnswerSet("OBQA", "openbookqa", _numbered("answer", 5), 4_957, 500),
}
NUM_TRAIN_ROWS = 170_420
# github.com/AGI-Edgerunners/LLM-Adapters: where the joined training set and each test set are.
REPOSITORY = "AGI-Edgerunners/LLM-Adapters"
COMMIT = "816657208af4db747803f87ba40a4c71383fed7a"
TRAIN_FILE = "ft-training_set/commonsense_170k.json"
TEST_FILE = "dataset/{folder}/test.json"


def training(row: Row, set: str) -> Instruction:
    """A row of the mixture."""
    return instruction.build(row, set=set)


def testing(row: Row, set: str) -> Instruction:
    """A row of one of the sets."""
    return instruction.build(row, set=set)


def choices(row: Instruction) -> Example:
    """A row's question with its listed answers, for their likelihood."""
    return instruction.listed(row, SETS[row.set].answers)


def extract(text: str, set: str) -> str:
    """The answer in a generated text by the rule of its set; "" if there is none."""
    return instruction.extract(text, SETS[set].answers)

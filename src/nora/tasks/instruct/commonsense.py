"""Commonsense reasoning: one mixture to train on, eight sets to answer (paper, Table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nora import tasks
from nora.tasks import instruction
from nora.tasks.instruction import Instruction

METRIC = "mean_accuracy"
READS_PROMPT = True
"""The extraction looks at prompt and answer together, after the last marker."""
DEV_IS_SCORED = False
SETS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
NUM_TRAIN_ROWS = 170_420
# github.com/AGI-Edgerunners/LLM-Adapters: where the joined training set and each test set are.
REPOSITORY = "AGI-Edgerunners/LLM-Adapters"
COMMIT = "816657208af4db747803f87ba40a4c71383fed7a"
TRAIN_FILE = "ft-training_set/commonsense_170k.json"
TEST_FILE = "dataset/{folder}/test.json"


def training(row: Mapping[str, Any], set: str) -> Instruction:
    return instruction.build(row, set=set)


def testing(row: Mapping[str, Any], set: str) -> Instruction:
    return instruction.build(row, set=set)


def extract(text: str, set: str) -> str:
    """The answer in a generated text by the rule of its set; "" where there is none."""
    return instruction.extract(text, tasks.load("commonsense", set).ANSWERS)

"""Grade-school math: MetaMathQA to train on, GSM8K to answer (paper, Table 9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nora.tasks.instruction import Instruction
from nora.tasks.math import gsm8k, metamath

METRIC = "mean_accuracy"
READS_PROMPT = False
DEV_IS_SCORED = True
"""Dev rows are answered, not only their loss taken: learning rate and ξ are chosen by them."""
SOURCES = {"train": metamath.SOURCE, "test": gsm8k.SOURCE}
SETS = ("gsm8k",)


def training(row: Mapping[str, Any], set: str) -> Instruction:
    """A row of MetaMathQA; a row of LLM-Adapters' math JSON (mini scale) is put into its form first."""
    del set
    return metamath.build(row if "query" in row else metamath.from_llm_adapters(row))


def testing(row: Mapping[str, Any], set: str) -> Instruction:
    del set
    return gsm8k.build(row)


def extract(text: str, set: str) -> str:
    del set
    return gsm8k.extract(text)

"""What a task makes of a row: the prompt, the answers it may have, which are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
"""A row of a task as its file has it."""


@dataclass(frozen=True)
class Example:
    """``prompt`` + one of ``candidates`` is the text of training and of scoring alike."""

    prompt: str
    candidates: tuple[str, ...]
    correct: tuple[int, ...]
    """Indices of the right candidates; the first is the training target."""
    references: tuple[str, ...] = ()
    """Gold answers of a generated one (SQuAD)."""

    @property
    def gold(self) -> int:
        return self.correct[0]


@dataclass(frozen=True)
class HubSource:
    """Where the rows live on the Hub, and how many there are in each split the protocol reads."""

    path: str
    name: str | None
    train: str
    test: str
    num_train_rows: int
    num_test_rows: int


def require_fields(row: Row, fields: Sequence[str], *, task: str) -> None:
    """ValueError naming the fields a row lacks."""
    missing = [field for field in fields if field not in row]
    if missing:
        raise ValueError(f"{task}: a row lacks {', '.join(missing)}; required {', '.join(fields)}, given {sorted(row)}")


def labelled(prompt: str, candidates: Sequence[str], label: Any, *, task: str) -> Example:
    """An example whose answer is the class ``label``; ValueError where there is no such class."""
    if label not in range(len(candidates)):
        raise ValueError(f"{task}: given label {label!r}, required 0 to {len(candidates) - 1} ({list(candidates)})")
    return Example(prompt, tuple(candidates), (int(label),))

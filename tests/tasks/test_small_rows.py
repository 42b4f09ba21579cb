"""The real rows of the small scale: the tasks read every one of them, and both splits know the same answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nora import tasks

_SMALL = Path(__file__).resolve().parents[2] / "data" / "small"


@pytest.mark.parametrize("name", sorted(path.name for path in _SMALL.iterdir()))
def test_every_row_becomes_an_example(name: str) -> None:
    task, golds = tasks.load("superglue", name), []
    for split in ("train", "validation"):
        lines = gzip.decompress((_SMALL / name / f"{split}.jsonl.gz").read_bytes()).decode().splitlines()
        examples = [task.build(json.loads(line)) for line in lines]
        assert examples
        golds.append({e.candidates[e.gold] for e in examples} if len({e.candidates for e in examples}) == 1 else set())
    assert golds[0] == golds[1]

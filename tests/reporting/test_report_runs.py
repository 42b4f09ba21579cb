"""What the report holds of runs: small, complete, and unable to end the script element it stands in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nora.reporting.report import RunIndex


def _fact(seed: int, **other: Any) -> dict[str, Any]:
    usual = {"state": "missing", "seed": seed, "difference": ["a=1", "b=2"], "command": f"nora run x=1 seed={seed}"}
    return usual | other


def test_runs_are_named_by_ranges_in_the_order_given() -> None:
    index = RunIndex({identity: _fact(i) for i, identity in enumerate("abcdef")})
    assert index.ranges(["b", "c", "d", "f"]) == "1-3 5"
    assert index.ranges(["f", "a"]) == "5 0" and index.ranges([]) == ""
    with pytest.raises(KeyError):
        index.ranges(["y"])


def test_a_text_that_runs_share_stands_there_once() -> None:
    done = {"commit": "c0ffee", "dirty": True, "seconds": 1.5, "proof": "nora passed", "outcome": "accuracy 0.5"}
    data = json.loads(RunIndex({"a": _fact(3), "b": _fact(4, state="done", **done)}).to_json())
    texts, (one, other) = data["texts"], data["runs"]
    assert len(texts) == len(set(texts)) and texts.count("nora run x=1 seed={seed}") == 1
    assert one[0] == "a" and texts[one[1]] == "missing" and one[2] == 3 and len(one) == 5
    assert other[3:5] == one[3:5] and texts[one[4]] == "a=1, b=2"
    assert [texts[other[5]], *other[6:8], texts[other[8]], other[9]] == list(done.values())


def test_no_text_of_a_record_ends_the_script() -> None:
    text = RunIndex({"a": _fact(0, command="nora run x='</script>' seed=0")}).to_json()
    assert "<" not in text and "</script>" in json.loads(text)["texts"][1]


def test_the_committed_report_is_small(checkout: Path) -> None:
    """A mail takes it; what grew would be pictures or repeated texts."""
    assert (checkout / "results" / "report.html").stat().st_size < 2_500_000

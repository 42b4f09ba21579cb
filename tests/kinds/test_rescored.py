"""A score computed again from its predictions: the last digits may differ between Pythons, nothing else may."""

from __future__ import annotations

import math

import pytest

from nora.store import verify
from nora.store.states import take_snapshot
from nora.workspace import open_workspace


@pytest.mark.parametrize(("other", "whole"), [(math.nextafter, True), (lambda score, up: score + 1e-9, False)])
def test_python_312_sums_floats_otherwise(other, whole, monkeypatch) -> None:
    store = open_workspace().store
    record = next(r for r in take_snapshot(store).values() if r.result["files"].get("predictions"))
    monkeypatch.setattr(verify, "rescore", lambda path, metric: other(verify_rescore(path, metric), math.inf))
    problems = verify.verify_record(store, record)
    assert (problems == []) is whole, problems


verify_rescore = verify.rescore

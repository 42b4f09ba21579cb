"""Is what a record says still what its files say? Hashes, and scores recomputed from the stored predictions."""

from __future__ import annotations

import math
from pathlib import Path

from nora import tasks
from nora.errors import UserError
from nora.files import parse_json, read_bounded_lines
from nora.store.record import Record
from nora.store.runs import Store
from nora.tasks.metrics import score


def rescore(path: Path, metric: str) -> float:
    """The metric from a predictions file."""
    return score(metric, [parse_json(line, where=path) for line in read_bounded_lines(path)])


def _ends_as_its_curve(record: Record) -> list[str]:
    """Where a factorisation kept its curves: each ends in the final value that is reported."""
    final = record.metrics["final"]
    return [
        f"{record.id}: the curve of {metric} ends at {values[-1]}, the record's final value is {final.get(metric)}"
        for metric, values in record.metrics.get("trace", {}).items()
        if values[-1] != final.get(metric)
    ]


def verify_record(store: Store, record: Record) -> list[str]:
    """One line per problem; [] where files and scores agree with the record. An adapter not kept is no problem."""
    problems = store.verify_files(record)
    try:
        return problems or _rescored(store, record)
    except (LookupError, TypeError, ValueError, OSError, EOFError, UserError) as error:
        # whole by its hashes, and yet made by something else than this program
        return [f"{record.id}: its scores cannot be computed again ({type(error).__name__}: {error})"]


_LAST_DIGITS = 1e-12  # from Python 3.12 on a sum of floats keeps what rounding takes, up to 3.11 it does not


def _rescored(store: Store, record: Record) -> list[str]:
    if record.spec["kind"] == "factorize" and record.status == "done":
        return _ends_as_its_curve(record)
    file = record.result["files"].get("predictions")
    if file is None:
        return []
    path = store.run_dir(record.spec["kind"], record.id) / file["name"]
    metric = tasks.of(record.spec["task"]).METRIC
    recorded, again = record.metrics["test"][metric], rescore(path, metric)
    if math.isclose(recorded, again, rel_tol=_LAST_DIGITS, abs_tol=_LAST_DIGITS):
        return []
    return [f"{path}: the predictions score {again}, the record says {recorded}"]

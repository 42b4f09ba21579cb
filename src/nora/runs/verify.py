"""Is what a record says still what its files say? Hashes, and scores recomputed from the stored predictions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from nora.runs.record import Record
from nora.runs.store import Store


def rescore(path: Path) -> float:
    """Accuracy from a predictions file."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    return sum(row["prediction"] in row["correct"] for row in rows) / len(rows)


def verify_record(store: Store, record: Record) -> list[str]:
    """One line per problem; [] where files and scores agree with the record. An adapter not kept is no problem."""
    problems = store.verify_files(record)
    file = record.result["files"].get("predictions")
    if problems or file is None:
        return problems
    path = store.run_dir(record.spec["kind"], record.id) / file["name"]
    recorded, again = record.metrics["test"]["accuracy"], rescore(path)
    if recorded != again:
        problems.append(f"{path}: the predictions score {again}, the record says {recorded}")
    return problems

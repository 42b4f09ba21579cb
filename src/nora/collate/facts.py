"""What is told of a run beside its number: state, seed, commit, how its spec differs from the usual one, command."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nora.collate.proofs import proof_line
from nora.runs.record import Record
from nora.runs.snapshot import Snapshot
from nora.tables.cells import Cell


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A spec as dotted keys → text; hashes of files and a random model's architecture are left out."""
    flat: dict[str, str] = {}
    for key, inner in value.items():
        if key in ("files", "architecture"):
            continue
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(inner) if isinstance(inner, list) else str(inner)
    return flat


def usual_settings(specs: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Per key the most frequent value (the first in order where two are as frequent)."""
    counts: dict[str, Counter[str]] = {}
    for spec in specs:
        for key, value in spec.items():
            counts.setdefault(key, Counter())[value] += 1
    return {key: min(counter, key=lambda v: (-counter[v], v)) for key, counter in sorted(counts.items())}


def run_facts(cells: Sequence[Cell], snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """id → what is told of a run: state, seed, commit, how its settings differ from those most runs of its table have
    at its scale (keys it has no value for, such as another method's, are no difference), command."""
    groups: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    first: dict[str, tuple[Cell, tuple[str, str, str]]] = {}
    for cell in cells:
        if cell.id is None or cell.spec is None or cell.id in first:
            continue
        group = cell.spec["kind"], cell.table, cell.scale
        groups.setdefault(group, {})[cell.id] = flatten(cell.spec)
        first[cell.id] = cell, group
    usual = {group: usual_settings(specs.values()) for group, specs in groups.items()}
    facts: dict[str, dict[str, Any]] = {}
    for identity, (cell, group) in first.items():
        own, base = groups[group][identity], usual[group]
        record = snapshot.get(identity)
        facts[identity] = {
            "state": snapshot.state(identity, cell.spec),
            "seed": cell.seed,
            "difference": [f"{key}={own[key]}" for key in sorted(own) if key != "seed" and own[key] != base[key]],
            "command": command(cell),
            **(_recorded(record) if record is not None else {}),
        }
    return facts


def command(cell: Cell) -> str:
    """What repeats a cell's run, as a shell takes it."""
    return shlex.join(["nora", "run", *cell.overrides])


def outcome(record: Record) -> dict[str, Any]:
    """What a run came to: its test scores, a factorisation's last errors, or DreamBooth's losses."""
    key = next((key for key in ("test", "final", "loss") if key in record.metrics), None)
    scores: Mapping[str, Any] = {} if key is None else record.metrics[key]
    return {name: value for name, value in scores.items() if not isinstance(value, list)}  # a curve is no outcome


def outcome_line(scores: Mapping[str, Any]) -> str:
    """The numbers among them, in one line."""
    return ", ".join(f"{key} {value:.4g}" for key, value in scores.items() if isinstance(value, int | float))


def _recorded(record: Record) -> dict[str, Any]:
    return {
        "commit": str(record.run.get("commit") or "")[:12],
        "dirty": bool(record.run.get("dirty")),
        "outcome": outcome_line(outcome(record)),
        "proof": proof_line(record.result["proof"]),
        "seconds": round(float(record.run.get("wall_seconds", 0.0)), 1),
    }

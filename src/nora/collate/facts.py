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
    """id → what the report tells of a run: state, seed, commit, how its spec differs from the usual one, command."""
    specs = {cell.id: cell.spec for cell in cells if cell.id is not None and cell.spec is not None}
    flat = {identity: flatten(spec) for identity, spec in specs.items()}
    kinds = sorted({spec["kind"] for spec in flat.values()})
    usual = {kind: usual_settings(spec for spec in flat.values() if spec["kind"] == kind) for kind in kinds}
    facts: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if cell.id is None or cell.id in facts:
            continue
        own = flat[cell.id]
        base = usual[own["kind"]]
        differences = [
            f"{key}={own.get(key, 'absent')}"
            for key in sorted({*own, *base})
            if key != "seed" and own.get(key) != base.get(key) and not (key not in own and key not in base)
        ]
        record = snapshot.get(cell.id)
        facts[cell.id] = {
            "state": snapshot.state(cell.id, cell.spec),
            "seed": cell.seed,
            "difference": differences,
            "command": command(cell),
            **(_recorded(record) if record is not None else {}),
        }
    return facts


def command(cell: Cell) -> str:
    """What repeats a cell's run, as a shell takes it."""
    return shlex.join(["nora", "run", *cell.overrides])


def _recorded(record: Record) -> dict[str, Any]:
    metrics = record.metrics.get("test")
    shown = {k: v for k, v in (metrics or {}).items() if isinstance(v, int | float)}
    return {
        "commit": str(record.run.get("commit") or "")[:12],
        "dirty": bool(record.run.get("dirty")),
        "test": ", ".join(f"{key} {value:.4g}" for key, value in shown.items()),
        "proof": proof_line(record.result["proof"]),
        "seconds": round(float(record.run.get("wall_seconds", 0.0)), 1),
    }

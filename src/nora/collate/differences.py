"""What differs between two records: spec, metrics, files and run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nora.runs.record import Record

ABSENT = "absent"
_PARTS = ("spec", "status", "metrics", "proof", "files", "run")
_SHOWN = 4  # of the proof's numbers per module
_KEY = 32  # characters in which keys are padded to stand in a column
_ALWAYS = ("started", "host")  # of the run: never the same, and say nothing


def flat_values(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → value; lists are values."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat_values(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _parts(record: Record) -> dict[str, Any]:
    proof = dict(record.result["proof"])
    # By module name, so that one module more does not shift every other.
    proof["modules"] = {m["name"]: {k: v for k, v in m.items() if k != "name"} for m in proof.get("modules", [])}
    return {
        "spec": record.spec,
        "status": record.status,
        "metrics": record.metrics,
        "proof": proof,
        "files": record.result["files"],
        "run": {key: value for key, value in record.run.items() if key not in _ALWAYS},
    }


def differences(one: Record, other: Record) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Part of the record → dotted key → (one's value, the other's); parts and keys that agree are left out."""
    mine, theirs = _parts(one), _parts(other)
    outcome: dict[str, dict[str, tuple[Any, Any]]] = {}
    for part in _PARTS:
        a, b = flat_values(mine[part]), flat_values(theirs[part])
        changed = {
            key: (a.get(key, ABSENT), b.get(key, ABSENT))
            for key in sorted({*a, *b})
            if key not in a or key not in b or a[key] != b[key]
        }
        if changed:
            outcome[part] = changed
    return outcome


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spell(value: Any, other: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,}", value):
        return f"{value[:12]}…"
    if isinstance(value, list):
        pairs = enumerate(zip(value, other, strict=False)) if isinstance(other, list) else ()
        at = next((i for i, (a, b) in pairs if a != b), None)
        where = "" if at is None else f", first differs at {at}"
        return f"[{len(value)} values{where}]" if len(str(value)) > 60 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def differences_text(one: Record, other: Record) -> str:
    """The differences for a terminal; numbers with the second minus the first."""
    lines = [f"{one.id} → {other.id}"]
    found = differences(one, other)
    if not found:
        lines.append("nothing differs")
    for part, changed in found.items():
        lines.append(part)
        modules = [key for key in changed if key.startswith("modules.")]
        if len(modules) > _SHOWN:
            lines.append(f"  modules: {len(modules)} numbers differ (--json lists them)")
            changed = {key: pair for key, pair in changed.items() if key not in modules}
        width = min(max(map(len, changed), default=0), _KEY)
        for key, (a, b) in changed.items():
            step = f"  ({b - a:+.4g})" if _is_number(a) and _is_number(b) else ""
            one_side, other_side = _spell(a, b), _spell(b, a)
            told = one_side if one_side == other_side else f"{one_side} → {other_side}{step}"
            lines.append(f"  {key:{width}}  {told}")
    return "\n".join(lines)

"""One record for a terminal of eighty columns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap
from typing import Any

from nora.collate.proofs import proof_line
from nora.runs.record import Record

_COLUMNS = 80
_LISTED = 12  # values of a list that are worth reading


def field(name: str, text: str, width: int = 8) -> list[str]:
    """ "  name     text", wrapped with the text hanging; what has no blank is not broken."""
    lines = wrap(text, _COLUMNS - width - 3, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"  {label:{width}} {line}" for label, line in zip([name, *[""] * (len(lines) - 1)], lines, strict=True)]


def _fields(values: Mapping[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [line for key, value in values.items() for line in field(key, _spell(value), width)]


def _spell(value: Any) -> str:
    """Numbers to six digits, long lists by their length, hashes by their beginning."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key} ({_spell(inner)})" if isinstance(inner, Mapping) else f"{key} {_spell(inner)}"
            for key, inner in value.items()
        )
    if isinstance(value, list | tuple):
        return f"[{len(value)} values]" if len(value) > _LISTED else "[" + ", ".join(map(_spell, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _spec(record: Record) -> dict[str, Any]:
    """The spec without the hashes of files, which are counted, and a random model's architecture."""
    shown: dict[str, Any] = {}
    for key, value in record.spec.items():
        if isinstance(value, Mapping):
            value = {k: v for k, v in value.items() if k != "architecture"}
            value |= {"files": f"{len(value['files'])} hashed"} if value.get("files") else {}
            if "encoders" in value:
                value["encoders"] = [encoder["name"] for encoder in value["encoders"]]
        shown[key] = value
    return shown


def show_text(record: Record, folder: Path) -> str:
    """Spec, metrics, init proof and run; ``--json`` has all of it."""
    lines = [f"{record.id}  {record.status}", f"  {folder}", "spec", *_fields(_spec(record)), "metrics"]
    metrics = dict(record.metrics)
    epochs = metrics.pop("epochs", [])
    lines += _fields({**metrics, **{f"epoch {i}": epoch for i, epoch in enumerate(epochs)}})
    proof = record.result["proof"]
    lines += ["init proof", f"  {proof_line(proof)}"]
    if proof["modules"]:
        lines.append("  difference, ρ, ρ of a sketch of this weight, size over Kaiming's, module")
        lines += [
            "  {relative_difference:7.1e} {rho:7.3f} {rho_sketch:7.3f} {scale_ratio:6.3f}  {name}".format_map(module)
            for module in proof["modules"]
        ]
    run = dict(record.run)
    if "started" in run:
        run["started"] = datetime.fromtimestamp(run["started"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return "\n".join([*lines, "run", *_fields({key: value for key, value in run.items() if value is not None})])

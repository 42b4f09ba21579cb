"""From a table's cell back to its runs: seeds, settings, commit, proof, and the command that repeats each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nora.collate.methods_by_tasks import report
from nora.runs.errors import UserError
from nora.runs.record import Record
from nora.tables.cells import SpecBook, make_cell
from nora.tables.table import Table


def _proof_line(proof: Mapping[str, Any]) -> str:
    worst = max((m["relative_difference"] for m in proof["modules"]), default=proof["output_difference"] or 0.0)
    rho = [m["rho"] / m["rho_sketch"] for m in proof["modules"]]
    ratio = f", ρ/ρ_sketch {min(rho):.2f}…{max(rho):.2f}" if rho else ""
    verdict = "passed" if proof["passed"] else "FAILED: " + "; ".join(proof["problems"])
    return f"{proof['init']} {verdict}, worst relative difference {worst:.1e}{ratio}"


def trace(table: Table, cell: str, records: Mapping[str, Record], *, checkout: Path) -> dict[str, Any]:
    """Everything behind one cell METHOD/TASK; UserError for a cell the table does not have."""
    method, slash, task = cell.partition("/")
    if not slash or method not in table.methods or task not in table.columns:
        raise UserError(
            f"CELL: given {cell!r}, required METHOD/TASK with a method of {', '.join(table.methods)} "
            f"and a task of {', '.join(table.columns)}"
        )
    book = SpecBook(checkout, table)
    entry = report(table, book, records, checkout)[method, task]
    runs = []
    for seed in table.seeds:
        if entry.settings is None:
            break
        made = make_cell(table, book, method, task, seed, 0, entry.settings)
        record = records.get(made.id or "")
        runs.append(
            {
                "seed": seed,
                "id": made.id,
                "state": record.status if record else "missing",
                "test": dict(record.metrics.get("test", {})) if record else None,
                "proof": _proof_line(record.result["proof"]) if record else None,
                "commit": record.run.get("commit") if record else None,
                "dirty": record.run.get("dirty") if record else None,
                "adapter_sha256": record.result["files"].get("adapter", {}).get("sha256") if record else None,
                "command": "nora run " + " ".join(made.overrides),
            }
        )
    return {"table": table.name, "scale": table.scale, "cell": cell, "settings": entry.settings, "runs": runs}


def trace_text(traced: Mapping[str, Any]) -> str:
    """The trace for a terminal."""
    lines = [
        f"{traced['table']} ({traced['scale']}), {traced['cell']}: settings {traced['settings'] or 'not chosen yet'}"
    ]
    for run in traced["runs"]:
        lines.append(f"seed {run['seed']}  {run['id']}  {run['state']}")
        if run["test"]:
            lines.append("  test    " + ", ".join(f"{k} {v:.4g}" for k, v in run["test"].items()))
            lines.append(f"  proof   {run['proof']}")
            lines.append(f"  commit  {run['commit']}{' (with uncommitted changes)' if run['dirty'] else ''}")
            lines.append(f"  adapter sha256 {run['adapter_sha256']}")
        lines.append(f"  repeat  {run['command']}")
    return "\n".join(lines)


def _short(value: Any) -> Any:
    """The value with every long list said by its length."""
    if isinstance(value, Mapping):
        return {key: _short(inner) for key, inner in value.items()}
    return f"[{len(value)} values]" if isinstance(value, list) and len(value) > 100 else value


def show_text(record: Record, folder: Path) -> str:
    """One record for a terminal."""
    lines = [f"{record.id}  {record.status}  [{folder}]", "spec"]
    for key, value in record.spec.items():
        if isinstance(value, Mapping):
            fields = " ".join(f"{k}={v}" for k, v in value.items() if k != "architecture")
            lines.append(f"  {key:9} {fields}")
        else:
            lines.append(f"  {key:9} {value}")
    lines.append("metrics")
    for key, value in record.metrics.items():
        if key == "epochs":
            lines += ["  epoch     " + ", ".join(f"{k} {v:.4g}" for k, v in epoch.items()) for epoch in value]
        else:
            lines.append(f"  {key:9} {_short(value)}")
    proof = record.result["proof"]
    lines += ["init proof", f"  {_proof_line(proof)}"]
    lines += [
        f"  {m['name']}: relative difference {m['relative_difference']:.1e}, ρ {m['rho']:.3f} "
        f"(a sketch of this weight: {m['rho_sketch']:.3f}), scale {m['scale_ratio']:.3f} × Kaiming"
        for m in proof["modules"]
    ]
    lines.append("run")
    lines += [f"  {key:15} {value}" for key, value in record.run.items()]
    return "\n".join(lines)

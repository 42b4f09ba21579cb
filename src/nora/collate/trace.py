"""From a table's cell back to its runs: seeds, settings, commit, proof, and the command that repeats each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nora.collate.facts import run_facts
from nora.collate.proofs import proof_line
from nora.collate.reported import report
from nora.runs.errors import UserError
from nora.runs.record import Record
from nora.runs.snapshot import Snapshot
from nora.tables.cells import Cell, SpecBook, make_cell
from nora.tables.table import Settings, Table
from nora.tables.targets import Target, target_cells


def trace(target: Target, cell: str, snapshot: Snapshot, *, checkout: Path) -> dict[str, Any]:
    """Everything behind one cell; UserError for a cell the target does not have.

    A cell is METHOD/TASK of a table (its chosen settings), and ROW/COLUMN, ROW or COLUMN of any other target: a curve
    of a panel, a start of the deployment table.
    """
    listed = target_cells(target, snapshot, checkout=checkout)
    settings: Settings | None = {}
    if isinstance(target, Table):
        settings, wanted = _reported_cells(target, cell, snapshot, checkout)
    else:
        wanted = [c for c in listed if cell in (f"{c.row}/{c.column}", c.row, c.column)]
        if not wanted:
            raise _unknown(cell, sorted({f"{c.row}/{c.column}" for c in listed}))
    facts = run_facts([*listed, *wanted], snapshot)
    runs = []
    for made in wanted:
        record = snapshot.get(made.id or "")
        runs.append(
            {
                "cell": f"{made.row}/{made.column}",
                "id": made.id,
                **facts[str(made.id)],
                "test": dict(record.metrics.get("test") or record.metrics.get("final") or {}) if record else None,
                "commit": record.run.get("commit") if record else None,
                "adapter_sha256": record.result["files"].get("adapter", {}).get("sha256") if record else None,
            }
        )
    return {"table": target.name, "scale": target.scale, "cell": cell, "settings": settings, "runs": runs}


def _reported_cells(
    table: Table, cell: str, snapshot: Snapshot, checkout: Path
) -> tuple[Settings | None, Sequence[Cell]]:
    """The settings a table reports a cell with (None where nothing is chosen yet), and a cell per seed."""
    method, slash, column = cell.partition("/")
    if not slash or method not in table.methods or column not in table.columns:
        raise UserError(
            f"CELL: given {cell!r}, required METHOD/COLUMN with a method of {', '.join(table.methods)} "
            f"and a column of {', '.join(table.columns)}"
        )
    book = SpecBook(checkout, table)
    settings = report(table, book, snapshot, checkout)[method, column].settings
    if settings is None:
        return None, []
    return settings, [make_cell(table, book, method, column, seed, 0, settings) for seed in table.seeds]


def _unknown(cell: str, known: Sequence[str]) -> UserError:
    near = difflib.get_close_matches(cell, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    return UserError(f"CELL: given {cell!r}, required ROW/COLUMN, ROW or COLUMN of {shown}{hint}")


def trace_text(traced: Mapping[str, Any]) -> str:
    """The trace for a terminal."""
    where = f"{traced['table']} ({traced['scale']})" if traced["scale"] else traced["table"]
    settings = "settings not chosen yet" if traced["settings"] is None else ""
    if traced["settings"]:
        settings = "settings " + ", ".join(f"{key}={value}" for key, value in traced["settings"].items())
    lines = [f"{where}, {traced['cell']}" + (f": {settings}" if settings else "")]
    for run in traced["runs"]:
        lines.append(f"{run['cell']}, seed {run['seed']}  {run['id']}  {run['state']}")
        if run["test"]:
            numbers = [f"{k} {v:.4g}" for k, v in run["test"].items() if isinstance(v, int | float)]
            lines.append("  test    " + ", ".join(numbers))
        if run["commit"]:
            lines.append(f"  proof   {run['proof']}")
            lines.append(f"  commit  {run['commit']}{' (with uncommitted changes)' if run['dirty'] else ''}")
        if run["adapter_sha256"]:
            lines.append(f"  adapter sha256 {run['adapter_sha256']}")
        if run["difference"]:
            lines.append("  unlike most runs of its table  " + ", ".join(run["difference"]))
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
    lines += ["init proof", f"  {proof_line(proof)}"]
    lines += [
        f"  {m['name']}: relative difference {m['relative_difference']:.1e}, ρ {m['rho']:.3f} "
        f"(a sketch of this weight: {m['rho_sketch']:.3f}), scale {m['scale_ratio']:.3f} × Kaiming"
        for m in proof["modules"]
    ]
    lines.append("run")
    lines += [f"  {key:15} {value}" for key, value in record.run.items()]
    return "\n".join(lines)

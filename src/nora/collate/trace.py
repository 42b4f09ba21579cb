"""From a table's cell back to its runs: seeds, settings, commit, proof, and the command that repeats each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nora.collate import labels
from nora.collate.facts import outcome, outcome_line, run_facts
from nora.collate.reported import report
from nora.collate.shown import field
from nora.runs.errors import UserError
from nora.runs.snapshot import Snapshot
from nora.tables.cells import Cell, SpecBook, make_cell
from nora.tables.table import Settings, Table
from nora.tables.targets import Target, target_cells


def trace(target: Target, cell: str, snapshot: Snapshot, *, checkout: Path) -> dict[str, Any]:
    """Everything behind one cell; UserError for a cell the target does not have.

    A cell is METHOD/COLUMN of a table (its chosen settings), by name or as printed (NoRA+/CB), and ROW/COLUMN, ROW or
    COLUMN of any other target: a curve of a panel, a start of the deployment table.
    """
    listed = target_cells(target, snapshot, checkout=checkout)
    settings: Settings | None = {}
    if not listed:
        raise UserError(f"TARGET: given {target.name}, which has no runs of its own to trace")
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
                "test": outcome(record) if record else None,
                "commit": record.run.get("commit") if record else None,
                "adapter_sha256": record.result["files"].get("adapter", {}).get("sha256") if record else None,
            }
        )
    return {"table": target.name, "scale": target.scale, "cell": cell, "settings": settings, "runs": runs}


def _reported_cells(
    table: Table, cell: str, snapshot: Snapshot, checkout: Path
) -> tuple[Settings | None, Sequence[Cell]]:
    """The settings a table reports a cell with (None where nothing is chosen yet), and a cell per seed."""
    axis = table.file.axis
    known = {f"{m}/{c}": (m, c) for m in table.methods for c in table.columns}
    printed = {f"{labels.method(m)}/{labels.column(axis, c)}".casefold(): (m, c) for m, c in known.values()}
    found = known.get(cell) or printed.get(cell.casefold())
    if found is None:
        near = difflib.get_close_matches(cell, known, n=1)
        raise UserError(
            f"CELL: given {cell!r}, required METHOD/COLUMN with a method of {', '.join(table.methods)} "
            f"and a column of {', '.join(table.columns)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    method, column = found
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
    """The trace for a terminal; commands stay in one piece, so that they can be copied."""
    where = f"{traced['table']} ({traced['scale']})" if traced["scale"] else traced["table"]
    lines = [f"{where}, {traced['cell']}"]
    if traced["settings"] is None:
        lines.append("settings not chosen yet: the search is not complete")
    elif traced["settings"]:
        lines.append("settings " + ", ".join(f"{key}={value}" for key, value in traced["settings"].items()))
    for run in traced["runs"]:
        lines.append(f"{run['cell']}, seed {run['seed']}  {run['id']}  {run['state']}")
        if run["test"]:
            lines += field("outcome", outcome_line(run["test"]))
        if run["commit"]:
            lines += field("proof", run["proof"])
            lines += field("commit", f"{run['commit']}{' (with uncommitted changes)' if run['dirty'] else ''}")
        if run["adapter_sha256"]:
            lines += field("adapter", run["adapter_sha256"])
        if run["difference"]:
            lines += field("unlike", ", ".join(run["difference"]))
        lines.append(f"  repeat   {run['command']}")
    if any(run["difference"] for run in traced["runs"]):
        lines.append("unlike: the settings in which a run differs from most runs of its table")
    return "\n".join(lines)

"""A plan and a status as a person reads them in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nora.launch.plan import STATES, PlannedCell, counts
from nora.launch.progress import eta_hours
from nora.tables.cost import memory_gib
from nora.tables.targets import Target

_LISTED = 40  # cells shown one by one; larger plans are summed up (--json has them all)


def _hours(planned: Sequence[PlannedCell]) -> str:
    known = [p.hours for p in planned if p.hours is not None]
    if not known:
        return "cost unknown"
    total = sum(known)
    figure = f"{total:.1f} h" if total >= 1 else f"{60 * total:.1f} min"
    return figure + (f" (of {len(known)} of {len(planned)} cells)" if len(known) < len(planned) else "")


def _head(table: Target, planned: Sequence[PlannedCell]) -> str:
    tally = ", ".join(f"{n} {state}" for state, n in counts(planned).items())
    return f"{table.headline}: {len(planned)} cells: {tally}"


def plan_text(table: Target, planned: Sequence[PlannedCell]) -> str:
    """State, reason and cost: cell by cell for a small plan, summed by row and stage for a large one."""
    lines = [_head(table, planned)]
    rest = [p for p in planned if p.state not in ("done", "diverged")]
    lines.append(f"still to run: {len(rest)} cells, {_hours(rest)} on one device" if rest else "nothing to run")
    sources = sorted({p.cost_source for p in rest if p.hours is not None})
    lines += [f"  cost: {source}" for source in sources]
    memory = [(gib, source) for gib, source in (memory_gib(p.cell) for p in rest) if gib is not None]
    if memory:
        largest, source = max(memory)
        lines.append(f"  memory: up to {largest:.0f} GiB a run ({source})")
    if len(rest) <= _LISTED:
        for p in rest:
            settings = " ".join(f"{k.split('.')[-1]}={v}" for k, v in p.cell.settings.items())
            lines.append(
                f"  {p.cell.id or '-' * 16}  {p.state:8} {p.cell.row:10} {p.cell.column:8} seed {p.cell.seed}  "
                f"{settings}  {p.reason}".rstrip()
            )
        return "\n".join(lines)
    width = max(len(p.cell.row) for p in planned)
    groups = Counter((p.cell.stage, p.cell.row, p.state, p.reason if p.state == "waits" else "") for p in planned)
    for (stage, row, state, reason), n in sorted(groups.items()):
        lines.append(f"  stage {stage}  {row:{width}} {n:5} {state} {reason}".rstrip())
    lines.append("  (--json lists every cell)")
    return "\n".join(lines)


def _progress_line(p: PlannedCell, steps: Mapping[str, Mapping[str, Any]]) -> str:
    one = steps.get(p.cell.id or "", {})
    where = f"{one['phase']} {one['step']}/{one['total'] or '?'}" if one else "starting"
    left = one.get("seconds_left") if one else None
    time_left = f", {left / 60:.1f} min left" if left is not None else ""
    return f"  {p.cell.id} running {p.cell.row} {p.cell.column} seed {p.cell.seed}: {where}{time_left}"


def status_text(
    table: Target, planned: Sequence[PlannedCell], steps: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Counts of states per row, the progress of what runs (``steps`` by run id), the reasons of what went wrong."""
    width = max((len(p.cell.row) for p in planned), default=0)
    shown = [state for state in STATES if any(p.state == state for p in planned)]
    lines = [_head(table, planned), "  " + " ".join([" " * width, *(f"{state:>8}" for state in shown)])]
    for method in dict.fromkeys(p.cell.row for p in planned):
        tally = Counter(p.state for p in planned if p.cell.row == method)
        lines.append("  " + " ".join([f"{method:{width}}", *(f"{tally[state]:8}" for state in shown)]))
    for p in planned:
        if p.state == "running":
            lines.append(_progress_line(p, steps or {}))
        if p.state in ("failed", "interrupted", "damaged", "diverged", "stale"):
            lines.append(f"  {p.cell.id} {p.state} {p.cell.row} {p.cell.column} seed {p.cell.seed}: {p.reason}")
    rest = [p for p in planned if p.state not in ("done", "diverged")]
    if rest:
        eta = eta_hours(planned)
        lines.append(f"  left: {_hours(rest)} on one device" + (f"; about {eta:.1f} h as it runs now" if eta else ""))
    return "\n".join(lines)

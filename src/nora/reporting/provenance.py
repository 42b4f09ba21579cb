"""One record, two records, the runs behind a cell: what is told of them, in words and as data."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap

from nora.config.compose import run_words
from nora.config.spec import spec_dict
from nora.errors import UserError, nearest
from nora.files import Json
from nora.kinds import AnySpec, FinetuneSpec
from nora.reporting import labels
from nora.reporting.proofs import proof_line
from nora.store.record import Record
from nora.store.states import Snapshot
from nora.tables.cell import Cell, Settings
from nora.tables.methods import Table
from nora.tables.target import AnyTarget

ABSENT = "absent"
_PARTS = ("spec", "status", "metrics", "proof", "files", "run")
_SHOWN = 4  # of the proof's numbers per module
_KEY = 32  # characters in which keys are padded to stand in a column
_ALWAYS = ("started", "host")  # of the run: never the same, and say nothing


def flat_values(value: Json, prefix: str = "") -> dict[str, Json]:
    """Dotted key → value; lists are values."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Json] = {}
    for key, inner in value.items():
        found |= flat_values(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _parts(record: Record) -> dict[str, Json]:
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


def differences(one: Record, other: Record) -> dict[str, dict[str, tuple[Json, Json]]]:
    """Part of the record → dotted key → (one's value, the other's); parts and keys that agree are left out."""
    mine, theirs = _parts(one), _parts(other)
    outcome: dict[str, dict[str, tuple[Json, Json]]] = {}
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


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spell_beside(value: Json, other: Json) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,}", value):
        return f"{value[:12]}…"
    if isinstance(value, list):
        pairs = enumerate(zip(value, other, strict=False)) if isinstance(other, list) else ()
        at = next((i for i, (a, b) in pairs if a != b), None)
        where = "" if at is None else f", first differs at {at}"
        return f"[{len(value)} values{where}]" if len(str(value)) > 60 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def differences_text(one: Record, other: Record, parts: Sequence[str] = _PARTS) -> str:
    """The differences (of some parts) for a terminal; numbers with the second minus the first."""
    lines = [f"{one.id} → {other.id}"]
    found = {part: changed for part, changed in differences(one, other).items() if part in parts}
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
            one_side, other_side = _spell_beside(a, b), _spell_beside(b, a)
            told = one_side if one_side == other_side else f"{one_side} → {other_side}{step}"
            lines.append(f"  {key:{width}}  {told}")
    return "\n".join(lines)


def flatten(value: Mapping[str, Json], prefix: str = "") -> dict[str, str]:
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


def run_facts(cells: Sequence[Cell[AnySpec]], snapshot: Snapshot) -> dict[str, dict[str, Json]]:
    """id → what is told of a run: state, seed, commit, how its settings differ from those most runs of its table have
    at its scale (keys it has no value for, such as another method's, are no difference), command."""
    groups: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    first: dict[str, tuple[Cell[AnySpec], tuple[str, str, str]]] = {}
    for cell in cells:
        if cell.id is None or cell.spec is None or cell.id in first:
            continue
        group = str(cell.spec.kind), cell.table, cell.scale
        groups.setdefault(group, {})[cell.id] = flatten(spec_dict(cell.spec))
        first[cell.id] = cell, group
    usual = {group: usual_settings(specs.values()) for group, specs in groups.items()}
    facts: dict[str, dict[str, Json]] = {}
    for identity, (cell, group) in first.items():
        own, base = groups[group][identity], usual[group]
        record = snapshot.get(identity)
        facts[identity] = {
            "state": snapshot.state(identity, cell.spec).state,
            "seed": cell.seed,
            "difference": [f"{key}={own[key]}" for key in sorted(own) if key != "seed" and own[key] != base[key]],
            "command": command(cell),
            **(_recorded(record) if record is not None else {}),
        }
    return facts


def command(cell: Cell[AnySpec]) -> str:
    """What repeats a cell's run, as a shell takes it."""
    return shlex.join(run_words(cell.overrides))


def outcome(record: Record) -> dict[str, Json]:
    """What a run came to: its test scores, a factorisation's last errors, or DreamBooth's losses."""
    key = next((key for key in ("test", "final", "loss") if key in record.metrics), None)
    scores: Mapping[str, Json] = {} if key is None else record.metrics[key]
    return {name: value for name, value in scores.items() if not isinstance(value, list)}  # a curve is no outcome


def outcome_line(scores: Mapping[str, Json]) -> str:
    """The numbers among them, in one line."""
    return ", ".join(f"{key} {value:.4g}" for key, value in scores.items() if isinstance(value, int | float))


def _recorded(record: Record) -> dict[str, Json]:
    return {
        "commit": str(record.run.get("commit") or "")[:12],
        "dirty": bool(record.run.get("dirty")),
        "outcome": outcome_line(outcome(record)),
        "proof": proof_line(record.result["proof"]),
        "seconds": round(float(record.run.get("wall_seconds", 0.0)), 1),
    }


_COLUMNS = 80
_LISTED = 12  # values of a list that are worth reading


def _field(name: str, text: str, width: int = 8) -> list[str]:
    """ "  name     text", wrapped with the text hanging; what has no blank is not broken."""
    lines = wrap(text, _COLUMNS - width - 3, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"  {label:{width}} {line}" for label, line in zip([name, *[""] * (len(lines) - 1)], lines, strict=True)]


def _fields(values: Mapping[str, Json]) -> list[str]:
    width = max(map(len, values), default=0)
    return [line for key, value in values.items() for line in _field(key, _spell(value), width)]


def _spell(value: Json) -> str:
    """Numbers to six digits, long lists by their length, hashes by their beginning."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key} ({_spell(inner)})" if isinstance(inner, Mapping) else f"{key} {_spell(inner)}"
            for key, inner in value.items()
        )
    if isinstance(value, list | tuple):
        return f"[{len(value)} values]" if len(value) > _LISTED else "[" + ", ".join(map(_spell, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _spec(record: Record) -> dict[str, Json]:
    """The spec without the hashes of files, which are counted, and a random model's architecture."""
    shown: dict[str, Json] = {}
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
    if proof.get("modules"):
        lines.append("  difference, ρ, ρ of a sketch of this weight, size over Kaiming's, module")
        lines += [
            "  {relative_difference:7.1e} {rho:7.3f} {rho_sketch:7.3f} {scale_ratio:6.3f}  {name}".format_map(module)
            for module in proof["modules"]
        ]
    run = dict(record.run)
    if "started" in run:
        run["started"] = datetime.fromtimestamp(run["started"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return "\n".join([*lines, "run", *_fields({key: value for key, value in run.items() if value is not None})])


def trace_cell(target: AnyTarget, cell: str, snapshot: Snapshot) -> dict[str, Json]:
    """Everything behind one cell; UserError for a cell the target does not have.

    A cell is METHOD/COLUMN of a table (its chosen settings), by name or as printed (NoRA+/CB), and ROW/COLUMN, ROW or
    COLUMN of any other target: a curve of a panel, a start of the deployment table.
    """
    listed = target.cells(snapshot)
    settings: Settings | None = {}
    wanted: Sequence[Cell[AnySpec]]
    if not listed:
        raise UserError(f"TARGET: given {target.name}, which has no runs of its own to trace")
    if isinstance(target, Table):
        settings, wanted = _reported_cells(target, cell, snapshot)
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
    table: Table, cell: str, snapshot: Snapshot
) -> tuple[Settings | None, Sequence[Cell[FinetuneSpec]]]:
    """The settings a table reports a cell with (None if nothing is chosen yet), and a cell per seed."""
    axis = table.file.axis
    known = {f"{m}/{c}": (m, c) for m in table.methods for c in table.columns}
    printed = {f"{labels.method(m)}/{labels.column(axis, c)}".casefold(): (m, c) for m, c in known.values()}
    spelt = cell if "/" in cell else re.sub(r"\s*,\s*", "/", cell)  # as a line of the .csv: NoRA+,CB
    found = known.get(spelt) or printed.get(spelt.casefold())
    if found is None:
        raise UserError(
            f"CELL: given {cell!r}, {_meant(cell, list(known))}required METHOD/COLUMN with a method of "
            f"{', '.join(table.methods)} and a column of {', '.join(table.columns)}"
        )
    method, column = found
    settings = table.chosen(method, column, snapshot)
    if settings is None:
        return None, []
    return settings, [table.cell(method, column, seed, 0, settings) for seed in table.seeds]


def _meant(cell: str, known: Sequence[str]) -> str:
    found = nearest(cell, known)
    return found and f"{found} "


def _unknown(cell: str, known: Sequence[str]) -> UserError:
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    return UserError(f"CELL: given {cell!r}, {_meant(cell, known)}required ROW/COLUMN, ROW or COLUMN of {shown}")


def trace_text(traced: Mapping[str, Json]) -> str:
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
            lines += _field("outcome", outcome_line(run["test"]))
        if run["commit"]:
            lines += _field("proof", run["proof"])
            lines += _field("commit", f"{run['commit']}{' (with uncommitted changes)' if run['dirty'] else ''}")
        if run["adapter_sha256"]:
            lines += _field("adapter", run["adapter_sha256"])
        if run["difference"]:
            lines += _field("unlike", ", ".join(run["difference"]))
        lines.append(f"  repeat   {run['command']}")
    if any(run["difference"] for run in traced["runs"]):
        lines.append("unlike: the settings in which a run differs from most runs of its table")
    return "\n".join(lines)

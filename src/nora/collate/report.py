"""results/report.html: one file with every artefact, the runs behind each cell, the init proofs and the ledger."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nora.collate.document import Document
from nora.collate.proofs import proof_line
from nora.runs.record import Record
from nora.runs.snapshot import Snapshot
from nora.tables.cells import Cell


@dataclass(frozen=True)
class Picture:
    """A drawn figure as the report shows it."""

    name: str
    title: str
    banner: str
    notes: tuple[str, ...]
    png: bytes

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """One artefact and the runs its target lists."""

    content: Document | Picture
    runs: tuple[str, ...]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.content.name)

    @property
    def picture(self) -> Picture | None:
        return self.content if isinstance(self.content, Picture) else None

    @property
    def document(self) -> Document | None:
        return self.content if isinstance(self.content, Document) else None


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
            "command": "nora run " + " ".join(_quoted(word) for word in cell.overrides),
            **(_recorded(record) if record is not None else {}),
        }
    return facts


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w./=,+:@-]+", word) else "'" + word + "'"


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


def render_report(sections: Sequence[Section], cells: Sequence[Cell], snapshot: Snapshot) -> str:
    """The page's text; the same artefacts and records give the same bytes."""
    runs = run_facts(cells, snapshot)
    own = files("nora.collate").joinpath("html")
    environment = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    # "<" cannot stand in a script element: a record's text must not end it.
    data = json.dumps(runs, ensure_ascii=True, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c")
    states = Counter(fact["state"] for fact in runs.values())
    return environment.from_string(own.joinpath("report.html.j2").read_text(encoding="utf-8")).render(
        sections=sections,
        states=sorted(states.items()),
        dirty=sum(bool(fact.get("dirty")) for fact in runs.values()),
        damaged=sorted(snapshot.damaged.items()),
        runs=Markup(data),
        css=Markup(own.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(own.joinpath("report.js").read_text(encoding="utf-8")),
    )


def _number(text: str) -> str:
    """What a cell is sorted by: its first number, empty where it has none."""
    found = re.search(r"[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", text)
    return found[0].replace("−", "-") if found else ""

"""results/report.html: one file with every artefact, the runs behind each cell, the init proofs and the ledger."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nora.collate.document import Document
from nora.collate.facts import run_facts
from nora.collate.figures import to_jpeg
from nora.collate.report_runs import RunIndex
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
    photographs: bool = False

    @property
    def uri(self) -> str:
        """The picture itself; photographs as JPEG, a quarter of the size."""
        kind, data = ("jpeg", to_jpeg(self.png)) if self.photographs and self.png else ("png", self.png)
        return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


@dataclass(frozen=True)
class Section:
    """One artefact and the runs its target lists."""

    content: Document | Picture
    runs: tuple[str, ...]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.content.name)

    @property
    def title(self) -> str:
        """With the scale, where the report has the artefact twice."""
        return self.content.title + (" (paper scale)" if self.content.name.endswith(".paper") else "")

    @property
    def picture(self) -> Picture | None:
        return self.content if isinstance(self.content, Picture) else None

    @property
    def document(self) -> Document | None:
        return self.content if isinstance(self.content, Document) else None


def render_report(sections: Sequence[Section], cells: Sequence[Cell], snapshot: Snapshot) -> str:
    """The page's text; the same artefacts and records give the same bytes."""
    runs = run_facts(cells, snapshot)
    index = RunIndex(runs, snapshot)
    own = files("nora.collate").joinpath("html")
    environment = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    environment.filters["ranges"] = index.ranges
    states = Counter(fact["state"] for fact in runs.values())
    return environment.from_string(own.joinpath("report.html.j2").read_text(encoding="utf-8")).render(
        sections=sections,
        states=sorted(states.items()),
        dirty=sum(bool(fact.get("dirty")) for fact in runs.values()),
        damaged=sorted(snapshot.damaged.items()),
        runs=Markup(index.to_json()),
        css=Markup(own.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(own.joinpath("report.js").read_text(encoding="utf-8")),
    )


def _number(text: str) -> str:
    """What a cell is sorted by: its first number, empty where it has none."""
    found = re.search(r"[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", text)
    return found[0].replace("−", "-") if found else ""

"""results/report.html: one file with every artefact, the runs behind each cell, the init proofs and the ledger."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from os.path import commonprefix

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from nora.files import Json
from nora.kinds import AnySpec
from nora.reporting.document import Document
from nora.reporting.labels import rendered
from nora.reporting.provenance import run_facts
from nora.store.states import Snapshot
from nora.tables.cell import Cell

_SEED = "{seed}"  # stands for the seed in a command, so that the seeds of a setting share it


class RunIndex:
    """Runs numbered in the order they are listed, so that a cell's runs are mostly neighbours."""

    def __init__(self, facts: Mapping[str, Mapping[str, Json]]) -> None:
        """``facts``: id → what is told of a listed run; one that nothing lists shows nowhere."""
        self._facts = facts
        self._places = {identity: i for i, identity in enumerate(facts)}

    def ranges(self, ids: Sequence[str]) -> str:
        """ "3-5 9" for the runs 3, 4, 5 and 9, in the order given."""
        spans: list[list[int]] = []
        for place in (self._places[identity] for identity in ids):
            if spans and place == spans[-1][1] + 1:
                spans[-1][1] = place
            else:
                spans.append([place, place])
        return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)

    def to_json(self) -> str:
        """{texts, runs}: per run its id and what report.js reads; texts by their place in ``texts``.

        "<" is escaped: a record's text must not end the script element that holds this.
        """
        texts: dict[str, int] = {}

        def text(value: str) -> int:
            return texts.setdefault(value, len(texts))

        runs: list[list[Json]] = []
        for identity, fact in self._facts.items():
            run = [identity, text(fact["state"]), fact["seed"], text(_shared(fact["command"], fact["seed"])),
                   text(", ".join(fact["difference"]))]  # fmt: skip
            if "commit" in fact:
                run += [text(fact["commit"]), int(fact["dirty"]), fact["seconds"], text(fact["proof"]), fact["outcome"]]
            runs.append(run)
        data = {"texts": list(texts), "runs": runs}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _shared(command: str, seed: int) -> str:
    """A run's command without its seed."""
    return " ".join(f"seed={_SEED}" if word == f"seed={seed}" else word for word in command.split(" "))


_SCALES = {
    "paper": ("Paper scale", "The paper's models and data: the reproduction."),
    "small": ("Small scale", "A really pretrained public base of 135 M parameters, a quarter of the paper's rows."),
    "mini": ("Mini scale", "Small base models of the same kinds on slices of the same data: trends only."),
    "smoke": ("Smoke test", "Random weights: the numbers mean nothing."),
    "": ("Without a scale", "Factorisation, at the paper's own size, and the deployment of adapters."),
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure as the report shows it."""

    name: str
    title: str
    banner: str
    notes: tuple[str, ...]
    data: bytes
    photographs: bool = False

    @property
    def uri(self) -> str:
        """The picture itself."""
        kind = "jpeg" if self.photographs else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode('ascii')}"


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


@dataclass(frozen=True)
class Measurement:
    """What a benchmark printed, and where."""

    name: str
    where: str
    table: str


def render_report(
    sections: Sequence[Section],
    cells: Sequence[Cell[AnySpec]],
    snapshot: Snapshot,
    measured: Sequence[Measurement] = (),
) -> str:
    """The page's text; the same artefacts, records and measurements give the same bytes."""
    runs = run_facts(cells, snapshot)
    index = RunIndex(runs)
    own = files("nora.reporting").joinpath("html")
    environment = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["ranges"] = index.ranges
    environment.filters["rich"] = _rich
    return environment.from_string(own.joinpath("report.html.j2").read_text(encoding="utf-8")).render(
        sections=sections,
        measured=measured,
        contents=_contents(sections),
        scales=_scales(cells, runs),
        dirty=sum(bool(fact.get("dirty")) for fact in runs.values()),
        damaged=sorted({**snapshot.damaged, **snapshot.newer}.items()),
        runs=Markup(index.to_json()),
        css=Markup(own.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(own.joinpath("report.js").read_text(encoding="utf-8")),
    )


def _rich(text: str) -> Markup:
    """The light notation of texts (labels.py) as HTML."""
    return Markup(
        rendered(
            text,
            plain=lambda piece: str(escape(piece)),
            sub=lambda inner: f"<sub>{_rich(inner)}</sub>",
            sup=lambda inner: f"<sup>{_rich(inner)}</sup>",
            code=lambda inner: f"<code>{escape(inner)}</code>",
        )
    )


def _contents(sections: Sequence[Section]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, [(scale, anchor)]): an artefact of two scales stands there once."""
    found: dict[str, list[Section]] = {}
    for section in sections:
        found.setdefault(section.content.name.split(".")[0], []).append(section)
    return [
        (
            commonprefix([s.content.title for s in both]).removesuffix(" of "),  # the base models differ
            [(s.content.name.partition(".")[2], s.anchor) for s in both],
        )
        for both in found.values()
    ]


def _scales(
    cells: Sequence[Cell[AnySpec]], runs: Mapping[str, Mapping[str, Json]]
) -> list[tuple[str, str, list[tuple[str, int]]]]:
    """(scale, what its numbers mean, how many of its runs are in which state)."""
    of = {cell.id: cell.scale for cell in cells if cell.id in runs}
    outcome = []
    for scale, (name, meaning) in _SCALES.items():
        states = Counter(runs[str(identity)]["state"] for identity, own in of.items() if own == scale)
        if states:
            outcome.append((name, meaning, sorted(states.items())))
    return outcome

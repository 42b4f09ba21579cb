"""The claims of conf/claims.yaml judged at every scale: the verdicts, what is committed, and the table of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from nora.config.schema import validate
from nora.errors import UserError, one_of
from nora.files import Json
from nora.reporting.claims import measured, trained
from nora.reporting.claims.evidence import DIFFERS, HOLDS, NOISE, NOT_RUN, PRINTED, Evidence, Outcome
from nora.reporting.document import Block, Document, Entry, Line
from nora.reporting.inference import LEVEL, holm
from nora.store.record import Record
from nora.tables.cell import read_yaml
from nora.tables.target import AnyTarget

FILE = "conf/claims.yaml"
HERE = ""
"""The scale of what has none: factorisations, benchmarks, deployment."""
SCALES = {PRINTED: "paper's own numbers", "mini": "mini", "small": "small", "paper": "paper scale", HERE: "here"}
TESTS: Mapping[str, Callable[..., Outcome]] = {
    test.__name__: test
    for test in (
        trained.scores, trained.losses, trained.diverged, trained.spectrum, trained.opened, measured.ledger,
        measured.rate, measured.insensitive, measured.tail, measured.needs_stopping, measured.never_rises,
        measured.cheaper_start, measured.faster_factorisation, measured.deployed,
    )
}  # fmt: skip
_Verdict = Literal["holds", "within noise", "differs", "not run"]


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class Claim:
    """One sentence of the paper."""

    id: str
    text: str
    place: str
    test: str
    given: dict[str, Json] = field(default_factory=dict)
    """What the test is given."""
    short: str = ""
    """Its name in FINDINGS.md's table; "" for a claim that is not in it."""
    remark: str = ""
    """What a reader of a verdict should know beside its numbers."""
    verdict: dict[str, _Verdict] = field(default_factory=dict)
    """Scale → what is committed; "here" for what has none. A scale that is not named has not run."""


@dataclass(frozen=True)
class Judged:
    """A claim at a scale."""

    claim: Claim
    scale: str
    outcome: Outcome
    adjusted: float | None = None
    """Holm's p over the compared claims of the scale."""

    @property
    def expected(self) -> str:
        return self.claim.verdict.get(self.scale or "here", NOT_RUN)

    @property
    def name(self) -> str:
        """ "few-shot-nora@small"."""
        return f"{self.claim.id}@{self.scale or 'here'}"


def read_claims(checkout: Path) -> list[Claim]:
    """UserError for a claim with unknown keys, an unknown test, or an id that is there twice."""
    claims = []
    for i, entry in enumerate(read_yaml(checkout / FILE)):
        where = f"{FILE}: {entry.get('id', i) if isinstance(entry, dict) else i}: "
        content = {("given" if key == "with" else key): value for key, value in dict(entry).items()}
        claim = validate(content, Claim, prefix=where)
        one_of(f"{where}test", claim.test, list(TESTS))
        for scale in claim.verdict:
            one_of(f"{where}verdict", scale, [s or "here" for s in SCALES])
        claims.append(claim)
    twice = sorted({c.id for c in claims if [o.id for o in claims].count(c.id) > 1})
    if twice:
        raise UserError(f"{FILE}: given {', '.join(twice)} twice, required an id each")
    return claims


def targets_of(claims: Sequence[Claim]) -> list[str]:
    """The tables and figures the claims read."""
    implied = {"rate": "table1", "needs_stopping": "table1", "deployed": "deployment"}
    named = [c.given.get("table") or c.given.get("figure") or implied.get(c.test) for c in claims]
    return list(dict.fromkeys(name for name in named if name))


def scales_of(claim: Claim, evidence: Evidence) -> list[str]:
    """The scales a claim is tried at."""
    table = claim.given.get("table")
    if table is None or claim.test == "opened":
        return [HERE] if table is None else ["paper"]
    own = [PRINTED] if claim.given.get("printed") is not None else []
    wanted = claim.given.get("columns")
    return own + [
        s for s in ("mini", "small", "paper") if evidence.target(table, s) and (wanted is None or s in wanted)
    ]


def judge(claims: Sequence[Claim], evidence: Evidence) -> list[Judged]:
    """Every claim at each of its scales. What is compared by a p-value *holds* or *differs* where Holm's adjusted one,
    over the claims of that scale, is at most 0.05; at chance nothing is."""
    found = [
        Judged(claim, scale, TESTS[claim.test](evidence, scale, **claim.given))
        for claim in claims
        for scale in scales_of(claim, evidence)
    ]
    adjusted: dict[str, float] = {}
    for scale in SCALES:
        adjusted |= holm({j.name: j.outcome.p for j in found if j.scale == scale and j.outcome.p is not None})
    return [_decided(j, adjusted.get(j.name)) for j in found]


def _decided(judged: Judged, p: float | None) -> Judged:
    outcome = judged.outcome
    if p is None or outcome.effect is None:
        return judged
    clear = p <= LEVEL and not outcome.chance
    verdict = (HOLDS if outcome.effect > 0 else DIFFERS) if clear else NOISE
    return replace(judged, outcome=replace(outcome, verdict=verdict), adjusted=p)


def changed(judged: Sequence[Judged]) -> list[str]:
    """One line per verdict that is not the committed one."""
    return [
        f"{j.name}: the records say {j.outcome.verdict!r}, committed is {j.expected!r} ({FILE})"
        for j in judged
        if j.outcome.verdict != j.expected
    ]


def number(value: float | None) -> str:
    """Three significant digits, a sign where it is below zero; "–" for what is not there,
    "none" for what no number reaches."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "none"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−", 1 if value < 0 else 0)


def effect_text(outcome: Outcome) -> str:
    """ "−1.5 [−3.1, 0.1] points"."""
    if outcome.effect is None:
        return "–"
    known = outcome.low is not None and outcome.high is not None and math.isfinite(outcome.low)
    interval = f" [{number(outcome.low)}, {number(outcome.high)}]" if known else ""
    return f"{number(outcome.effect)}{interval} {outcome.unit}".strip()


def claims_document(
    judged: Sequence[Judged], ranks: Sequence[Block] = (), files: tuple[tuple[Path, str], ...] = ()
) -> Document:
    """Per claim its verdict at every scale, then the evidence behind each, and the methods' ranks."""
    claims = list({j.claim.id: j.claim for j in judged}.values())
    by = {(j.claim.id, j.scale): j for j in judged}
    sentences = [Line(c.id, (Entry(f"{c.text}. {c.place}"),)) for c in claims]
    verdicts = [Line(c.id, tuple(_verdict_entry(by.get((c.id, scale))) for scale in SCALES)) for c in claims]
    remarks = [Line(j.name, (Entry("; ".join(_remarks(j))),)) for j in judged if _remarks(j)]
    return Document(
        name="claims",
        title="The paper's claims, and what the records say",
        banner="",
        blocks=(
            Block("Sentences", ("sentence, place",), tuple(sentences)),
            Block("Verdicts", tuple(SCALES.values()), tuple(verdicts)),
            _evidence("Evidence: trained models", [j for j in judged if j.scale != HERE]),
            _evidence("Evidence: factorisation, cost, deployment", [j for j in judged if j.scale == HERE]),
            Block("Remarks", ("remark",), tuple(remarks)),
            *ranks,
        ),
        notes=NOTES,
        csv_header=(
            "claim",
            "scale",
            "verdict",
            "effect",
            "low",
            "high",
            "unit",
            "n",
            "visible",
            "p",
            "p_holm",
            "runs",
        ),
        csv_rows=tuple(_row(j) for j in judged),
        files=files,
        folder=".",
    )


def _evidence(heading: str, judged: Sequence[Judged]) -> Block:
    lines = [
        Line(
            j.name,
            (
                Entry(effect_text(j.outcome), runs=j.outcome.runs),
                Entry(j.outcome.n),
                Entry(number(j.outcome.visible)),
                Entry("–" if j.adjusted is None else f"{j.adjusted:.2g}"),
            ),
        )
        for j in judged
        if j.outcome.verdict != NOT_RUN
    ]
    return Block(heading, ("effect [95 %]", "n", "visible", "p (Holm)"), tuple(lines))


def _remarks(judged: Judged) -> list[str]:
    own = judged.claim.remark if judged.outcome.verdict != NOT_RUN and judged.scale != PRINTED else ""
    return [*judged.outcome.notes, *([own] if own else [])]


NOTES = (
    "holds: in the claim's direction by more than noise; differs: against it, or not as the sentence says; within "
    "noise: these runs cannot tell, which is no verdict against the claim; not run: nobody has, and what it takes. "
    "A claim's number is the paper's, its direction is what is judged.",
    "Scales: the paper's own numbers with the noise it prints; mini, a base of 1 M parameters made here; small, a "
    "public base of 135 M; paper, its models and data; here, what has no scale (factorisation at the paper's own size, "
    "benchmarks on this project's CPU, deployment).",
    "Compared scores and losses: differences within seed, and within question where the runs kept their answers; the "
    "interval is Student's on the hierarchical bootstrap's standard error (seeds, then questions). The verdict needs "
    "Holm's p over the claims of the scale to be at most 0.05; the interval is not adjusted. Visible: the smallest "
    "true difference found with 80 % power.",
    "Made by `nora claims`, which exits 1 when a verdict differs from the one in conf/claims.yaml; `nora claims ID` "
    "lists the runs behind each.",
)


def _verdict_entry(judged: Judged | None) -> Entry:
    if judged is None:
        return Entry("·")
    outcome = judged.outcome
    return Entry(outcome.verdict + (" (at chance)" if outcome.chance else ""), runs=outcome.runs, grey=outcome.chance)


def _row(j: Judged) -> tuple[object, ...]:
    o = j.outcome
    numbers = ["" if v is None or not math.isfinite(v) else f"{v:.6g}" for v in (o.effect, o.low, o.high)]
    visible, p, adjusted = (
        "" if v is None or not math.isfinite(v) else f"{v:.4g}" for v in (o.visible, o.p, j.adjusted)
    )
    return (j.claim.id, j.scale or "here", o.verdict, *numbers, o.unit, o.n, visible, p, adjusted, " ".join(o.runs))


def lines(judged: Sequence[Judged], *, runs: bool) -> list[str]:
    """For a terminal: a line per verdict, with its remarks and, if asked for, its runs."""
    shown = []
    for j in judged:
        o = j.outcome
        seen = f", visible {number(o.visible)}" if o.visible is not None else ""
        shown.append(f"{j.name:34} {o.verdict:13} {effect_text(o)}" + (f"  (n: {o.n}{seen})" if o.n else ""))
        shown += [f"    {note}" for note in _remarks(j)]
        if runs:
            shown += [f"    nora show {identity}" for identity in o.runs]
    return shown


def evidence_of(
    checkout: Path, records: Mapping[str, Record], results: Path, targets: Sequence[AnyTarget] = ()
) -> tuple[list[Judged], list[Block]]:
    """All claims of a checkout and the methods' ranks; ``targets``: those that are loaded already."""
    evidence = Evidence(checkout, records, results, targets)
    return judge(read_claims(checkout), evidence), trained.ranks(evidence, "table2")


def as_json(judged: Sequence[Judged]) -> list[Json]:
    """For machines, infinite and absent numbers as null."""
    plain = TypeAdapter(Outcome)

    def finite(value: Json) -> Json:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [
        {
            "claim": j.claim.id, "text": j.claim.text, "place": j.claim.place, "scale": j.scale or "here",
            "committed": j.expected, "p_holm": j.adjusted,
            **{key: finite(value) for key, value in plain.dump_python(j.outcome).items()},
        }
        for j in judged
    ]  # fmt: skip

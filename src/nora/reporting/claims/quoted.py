"""What may be quoted: FINDINGS.md, a page from the claims; numbers.tex and numbers.json, every number with its runs."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase

from nora.reporting.claims.evidence import DIFFERS, HOLDS, NOISE, NOT_RUN
from nora.reporting.claims.judged import HERE, SCALES, Judged, effect_text, number
from nora.reporting.document import Block, Document, Entry, Line, grid
from nora.reporting.latex import escape_latex

_DIGITS = dict(zip("0123456789", "Zero One Two Three Four Five Six Seven Eight Nine".split(), strict=True))
_FIRST = re.compile(r"[−-]?\d[\d,]*(?:\.\d+)?(?:e[−-]?\d+)?")
_SIGNS = {"+": "Plus", "κ": "Kappa", "ξ": "Xi", "η": "Eta", "ζ": "Zeta", "λ": "Lambda"}


@dataclass(frozen=True)
class Number:
    """A number a text may quote. ``name``: dotted; the macro's name follows from it."""

    name: str
    text: str
    value: float | None
    runs: tuple[str, ...]
    trace: str
    """The command that leads to its runs."""

    @property
    def macro(self) -> str:
        """Letters alone, as TeX wants it: table2.small.sst2 → noraTableTwoSmallSstTwo."""
        name = re.sub(r"(?<=\d)\.(?=\d)", " Point ", self.name)
        spelt = "".join(f" {_SIGNS.get(c) or _DIGITS.get(c)} " if c in _SIGNS or c in _DIGITS else c for c in name)
        return "nora" + "".join(word[0].upper() + word[1:] for word in re.split(r"[^A-Za-z]+", spelt) if word)


def of_claims(judged: Iterable[Judged]) -> list[Number]:
    """Per claim and scale its verdict and, where it has run, effect, interval and the smallest visible difference."""
    found = []
    for j in judged:
        o, scale = j.outcome, j.scale or "here"
        parts: dict[str, tuple[str, float | None]] = {"verdict": (o.verdict, None)}
        for key, value in (("effect", o.effect), ("low", o.low), ("high", o.high), ("visible", o.visible)):
            if value is not None and math.isfinite(value):
                parts[key] = (number(value), float(f"{value:.6g}"))
        found += [
            Number(f"claims.{j.claim.id}.{scale}.{key}", text, value, o.runs, f"nora claims {j.claim.id}")
            for key, (text, value) in parts.items()
        ]
    return found


def of_table(document: Document) -> list[Number]:
    """Every cell with runs behind it that begins with a number."""
    found = []
    for block in document.blocks:
        labels = [line.label for line in block.lines]
        for line in block.lines:
            # Rows of one label are told apart by what else stands in words there (Table 1: algorithm and start).
            words = [e.text for e in line.entries if not e.runs][:2] if labels.count(line.label) > 1 else []
            for column, entry in zip(block.columns, line.entries, strict=True):
                first = _FIRST.match(entry.text)
                if not entry.runs or first is None:
                    continue
                name = ".".join(filter(None, (document.name, block.heading, line.label, *words, column)))
                value = float(first[0].replace("−", "-").replace(",", ""))
                trace = f"nora show {entry.runs[0]}"  # and so on for each of its runs
                found.append(Number(name, entry.text, value, entry.runs, trace))
    return found


def numbers_tex(numbers: Sequence[Number]) -> str:
    r"""A macro each; ``\input`` it and write ``\noraClaims…``. ValueError for two of one name."""
    twice = [macro for macro, n in Counter(n.macro for n in numbers).items() if n > 1]
    if twice:
        raise ValueError(f"numbers: given {', '.join(sorted(twice)[:3])} twice, required a name each")
    lines = [f"\\newcommand{{\\{n.macro}}}{{{escape_latex(n.text)}}}" for n in numbers]
    return (
        "% numbers, made by `nora collate all`: do not edit. Where each comes from: numbers.json.\n"
        + "\n".join(lines)
        + "\n"
    )


def numbers_json(numbers: Sequence[Number]) -> str:
    """name → macro, text, value, runs, and the command that leads to them."""
    entries = {
        n.name: {"macro": n.macro, "text": n.text, "value": n.value, "runs": list(n.runs), "trace": n.trace}
        for n in numbers
    }
    lines = (json.dumps({name: entries[name]}, ensure_ascii=False)[1:-1] for name in sorted(entries))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def headline(judged: Sequence[Judged]) -> Block:
    """The claims with a short name, a line each: the verdict and the effect at every scale."""
    by = {(j.claim.id, j.scale): j for j in judged}
    claims = [c for c in {j.claim.id: j.claim for j in judged}.values() if c.short]
    lines = [
        Line(c.short, (Entry(f"`{c.id}`"), *(_cell(by.get((c.id, scale)), brief=scale == "paper") for scale in SCALES)))
        for c in claims
    ]
    return Block("", ("claim", *SCALES.values()), tuple(lines))


def readme_table(judged: Sequence[Judged]) -> str:
    """The same table with the verdicts alone, as the README shows it."""
    block = headline(judged)
    lines = [replace(x, entries=tuple(Entry(e.text) for e in x.entries[1:])) for x in block.lines]
    return "\n".join(grid_of(Block("", block.columns[1:], tuple(lines)))) + "\n"


def _cell(judged: Judged | None, *, brief: bool) -> Entry:
    if judged is None:
        return Entry("")
    o = judged.outcome
    if o.verdict == NOT_RUN:
        return Entry(NOT_RUN)
    p = "" if judged.adjusted is None else f", p {judged.adjusted:.2g}"
    chance = "at chance; " if o.chance else ""
    return Entry(o.verdict, detail="" if o.effect is None else f"{chance}{effect_text(o)}{p}")


def findings(judged: Sequence[Judged], figure: str = "figures/fig1.png") -> str:
    """FINDINGS.md: what holds, what does not, what has not run."""
    parts = [
        "# What the records say of the paper's claims",
        "",
        "Made by `nora claims` and `nora collate all` from `conf/claims.yaml` and the records: do not edit. "
        "`nora claims ID` leads to the runs behind a line; [claims.md](claims.md): every sentence with its evidence.",
        "",
        *(f"- **{title}**: {_counted(judged, scale)}." for scale, title in _TITLES.items()),
        "",
        *grid_of(headline(judged)),
        "",
        "[95 % intervals]; *within noise*: these runs cannot tell; *holds* and *differs* need p ≤ 0.05, Holm's over "
        "the claims compared at that scale. The paper's own numbers stand with the noise it prints, not paired.",
        "",
        f"![Figure 1: what the start does to ScaledGD]({figure})",
        "",
        "## Not as the paper says",
        "",
        *(_told(j) for j in judged if j.outcome.verdict == DIFFERS),
        "",
        "## What the runs cannot tell yet",
        "",
        *(_open(j) for j in judged if j.outcome.verdict == NOISE and j.scale == "small"),
        *_at_mini(judged),
        "",
        "## What nobody has run, and what it takes",
        "",
        *_not_run(judged),
    ]
    return "\n".join(parts).rstrip() + "\n"


_TITLES = {
    "paper": "Paper scale (its models and data)",
    "small": "Small scale (a public base of 135 M parameters)",
    "mini": "Mini scale (bases of about 1 M parameters)",
    HERE: "Factorisation, cost, deployment (at the paper's own size, on this project's machines)",
    "printed": "The paper's own numbers, with the noise they carry",
}


def _counted(judged: Sequence[Judged], scale: str) -> str:
    tally = Counter(j.outcome.verdict for j in judged if j.scale == scale)
    chance = sum(j.outcome.chance for j in judged if j.scale == scale)
    if set(tally) == {NOT_RUN}:
        return f"nothing has run ({tally[NOT_RUN]} claims)"
    words = [f"{v} {tally[v]}" for v in (HOLDS, DIFFERS, NOISE, NOT_RUN) if tally[v]]
    return ", ".join(words) + (f"; {chance} of them at chance" if chance else "")


def _told(judged: Judged) -> str:
    o = judged.outcome
    effect = f" {effect_text(o)}." if o.effect is not None else ""
    notes = [*o.notes, *([judged.claim.remark] if judged.claim.remark else [])]
    return f"- `{judged.name}` “{judged.claim.text}”:{effect} {'; '.join(notes)}".rstrip()


def _open(judged: Judged) -> str:
    o = judged.outcome
    return f"- `{judged.name}` {effect_text(o)}; visible from {number(o.visible)}; {'; '.join(o.notes)}"


def _at_mini(judged: Sequence[Judged]) -> list[str]:
    own = [j for j in judged if j.scale == "mini" and j.outcome.verdict == NOISE]
    if not own:
        return []
    chance = sum(j.outcome.chance or any("at chance" in note for note in j.outcome.notes) for j in own)
    return [
        f"- Mini scale: {len(own)} comparisons within noise; in {chance} of them most columns, or all, are at chance."
    ]


def _not_run(judged: Sequence[Judged]) -> list[str]:
    """What it takes, once for the claims that take the same."""
    alike: dict[str, list[str]] = {}
    for j in judged:
        if j.outcome.verdict == NOT_RUN:
            alike.setdefault("; ".join(n.split("; ")[0] for n in j.outcome.notes), []).append(f"`{j.name}`")
    return [f"- {', '.join(names)}: {takes}" for takes, names in alike.items()]


def grid_of(block: Block) -> list[str]:
    """A block as the lines of a Markdown table."""
    return grid([["", *block.columns], *([line.label, *(e.plain for e in line.entries)] for line in block.lines)])


def distinct(numbers: Sequence[Number]) -> list[Number]:
    """The numbers; where cells of a table share a name (trials of a search) the second is named ".b", then ".c"."""
    seen: Counter[str] = Counter()
    found = []
    for n in numbers:
        again = seen[n.macro]
        seen[n.macro] += 1
        found.append(replace(n, name=f"{n.name}.{ascii_lowercase[again]}") if again else n)
    return found


def quoted_files(
    judged: Sequence[Judged], documents: Sequence[Document], results: Path
) -> tuple[tuple[Path, str], ...]:
    """The three files with their texts."""
    numbers = distinct([*of_claims(judged), *(n for document in documents for n in of_table(document))])
    return (
        (results / "FINDINGS.md", findings(judged)),
        (results / "numbers.tex", numbers_tex(numbers)),
        (results / "numbers.json", numbers_json(numbers)),
    )

"""The theorem ledger as a document."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nora.errors import UserError
from nora.files import Json, canonical_json, read_json, sha256_bytes
from nora.reporting.document import Block, Document, Entry, Line

_GREEK = {
    "alpha": "α", "beta": "β", "eps": "ε", "zeta": "ζ", "eta": "η", "theta": "θ", "kappa": "κ", "lambda": "λ",
    "xi": "ξ", "sigma": "σ", "tau": "τ", "Theta": "Θ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
    "Nystrom": "Nyström",
}  # fmt: skip
_SYMBOLS = {"||": "‖", "<=": "≤", ">=": "≥", "sqrt(": "√("}
_NAMED = re.compile(rf"(?<![A-Za-z])({'|'.join(_GREEK)})(?![A-Za-z])")
_READ = ("id", "verdict", "instances", "searched", "quantity", "worst", "limit", "frequency", "statement", "condition",
         "counterexample", "note")  # fmt: skip
_HEADER = ("id", "verdict", "instances", "searched", "quantity", "worst", "limit", "frequency")


def _verdict(row: Mapping[str, Json]) -> str:
    share = "" if row["frequency"] is None else f" {100 * row['frequency']:.1f} %"
    return f"{row['verdict']}{share}"


def rows_hash(rows: Sequence[Mapping[str, Json]]) -> str:
    """Of the rows, as the file says it."""
    return sha256_bytes(canonical_json(rows).encode())


def read_rows(path: Path) -> list[dict[str, Json]]:
    """The rows of a ledger file; UserError where it is not what ``nora theory`` writes."""
    try:
        content = read_json(path, {"rows": (list,), "sha256": (str,)})
        rows = content["rows"]
        intact = content["sha256"] == rows_hash(rows)
        lacking = sorted({key for row in rows for key in _READ if key not in row})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no ledger ({type(error).__name__}: {error}); `nora theory` writes it") from None
    if not intact:
        raise UserError(f"{path}: the rows are not what their hash says (changed by hand?); `nora theory` writes it")
    if lacking:
        raise UserError(f"{path}: rows lack {', '.join(lacking)}; `nora theory` writes it")
    return list(rows)


def mathematics(text: str) -> str:
    """The ledger's ASCII with Greek letters and signs; what is raised or lowered stays as labels.py reads it."""
    for spelt, sign in _SYMBOLS.items():
        text = text.replace(spelt, sign)
    text = _NAMED.sub(lambda found: _GREEK[found[0]], text)
    return re.sub(r" - |-(?=[Α-ω])", lambda found: found[0].replace("-", "−"), text)


def ledger_line(row: Mapping[str, Json]) -> str:
    """One row for a terminal."""
    tried = f"{row['instances']} random + {row['searched']} searched"
    return f"{row['id']:22} {_verdict(row):32} worst {row['worst']:.3g} (limit {row['limit']:.3g})  {tried}"


def ledger_document(rows: Sequence[Mapping[str, Json]]) -> Document:
    """Verdicts in the paper's order, then each statement with its condition or counter-example."""
    verdicts = tuple(
        Line(
            row["id"],
            (
                Entry(_verdict(row), row["verdict"] in ("refuted", "holds under an extra condition")),
                Entry(f"{row['instances']:,}"),
                Entry(f"{row['searched']:,}"),
                Entry(f"{row['worst']:.3g}"),
                Entry(f"{row['limit']:.3g}"),
            ),
        )
        for row in rows
    )
    details = tuple(
        Line(row["id"], (Entry(mathematics(row["statement"])), Entry(mathematics(_remark(row))))) for row in rows
    )
    tally = Counter(row["verdict"] for row in rows)
    return Document(
        name="theory",
        title="The theorem ledger",
        banner="",
        blocks=(
            Block("Verdicts", ("verdict", "random", "searched", "worst", "limit"), verdicts),
            Block("Statements", ("statement", "condition, counter-example, note"), details),
        ),
        notes=(
            "; ".join(f"{verdict}: {n}" for verdict, n in tally.items()) + ".",
            "Random: drawn instances; searched: adversarial ones. Worst: the largest value of the checked "
            "quantity within the hypotheses, in the units of the statement: an error of rounding, or a ratio that must "
            "not exceed 1; the claim survives while it is at most the limit. Counter-examples are exact. Bold: what "
            "the paper states needs a condition or is refuted.",
            "Made by `nora theory`, which exits 1 when a verdict differs from the committed one.",
        ),
        csv_header=_HEADER,
        csv_rows=tuple(tuple("" if row[key] is None else row[key] for key in _HEADER) for row in rows),
    )


def _remark(row: Mapping[str, Json]) -> str:
    parts = []
    if row["condition"]:
        parts.append(f"holds if {row['condition']}")
    if row["counterexample"]:
        parts.append(f"counter-example: {row['counterexample']}")
    if row["note"]:
        parts.append(row["note"])
    return "; ".join(parts) or "–"

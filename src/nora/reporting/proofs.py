"""The init proofs of the records: one in a line, all of them in a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nora.files import Json
from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.store.record import Record


def proof_line(proof: Mapping[str, Json]) -> str:
    """What a run's init proof measured, in one line."""
    modules = proof.get("modules", [])
    worst = max((m["relative_difference"] for m in modules), default=proof.get("output_difference") or 0.0)
    rho = [m["rho"] / m["rho_sketch"] for m in modules if m.get("rho_sketch")]
    ratio = f", ρ/ρ_sketch {min(rho):.2f}…{max(rho):.2f}" if rho else ""
    verdict = "passed" if proof["passed"] else "FAILED: " + "; ".join(proof["problems"])
    return f"{proof['init']} {verdict}, worst relative difference {_small(worst)}{ratio}"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def proofs(records: Mapping[str, Record]) -> Document:
    """Every run's init proof, gathered per kind of run, method (or start) and init."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records.values():
        spec = record.spec
        what = spec.get("method") or spec.get("start") or spec.get("adapter") or {}
        groups.setdefault((spec["kind"], what.get("name", ""), str(record.result["proof"]["init"])), []).append(record)
    lines = []
    for (kind, name, init), alike in sorted(groups.items()):
        found = [record.result["proof"] for record in alike]
        modules = [m for proof in found for m in proof.get("modules", [])]
        worst = max((m["relative_difference"] for m in modules), default=None)
        ratios = [m["rho"] / m["rho_sketch"] for m in modules if m.get("rho_sketch")]
        passed = sum(bool(proof["passed"]) for proof in found)
        entries = (
            Entry(labels.init(init)),
            Entry(f"{passed} of {len(found)}", runs=tuple(r.id for r in alike)),
            Entry("–" if worst is None else _small(worst)),
            Entry(f"{min(ratios):.2f} … {max(ratios):.2f}" if ratios else "–"),
        )
        lines.append(Line(_row(kind, name), entries))
    return Document(
        name="proofs",
        title="Init proofs",
        banner="",
        blocks=(
            Block("", ("init", "runs that passed", "worst relative difference", "ρ / ρ of a sketch"), tuple(lines)),
        ),
        notes=(
            "Before its first step every run recomputes its start by the method's formula from the pretrained weight, "
            "the seed and the module's name, and compares it with the factor the forward pass reads (limit 1e-5). "
            "ρ = in·‖A Wᵀ‖² / (‖A‖²‖W‖²) needs no seed: about 1 × its expectation for a Nyström sketch of the weight, "
            "far below it for a factor drawn without the weight.",
            "–: no factor of one formula: of Prefix the keys and values the forward pass reads are compared, "
            "of a factorisation the start itself, of orthogonal starts and PiSSA by power iterations the output.",
            *_released(groups),
        ),
    )


def _released(groups: Iterable[tuple[str, str, str]]) -> tuple[str, ...]:
    """Says why NoRA stands with a start that is not its own, where it does."""
    if not any(name in ("nora", "nora_plus") and init == "kaiming" for _, name, init in groups):
        return ()
    return (
        "NoRA and NoRA+ with a Kaiming start: the protocol that repeats the released code, whose sketch never reaches "
        "the trained weights.",
    )


def _row(kind: str, name: str) -> str:
    """What was started: a method, the start of a factorisation, or every adapter of the deployment table alike."""
    words = labels.init(name) if kind == "factorize" else labels.method(name)
    return f"{labels.kind(kind)}: {words}" if name else labels.kind(kind)

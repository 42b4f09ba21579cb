"""Every claim checked, and the verdicts compared with the committed ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import iter_modules

from nora.factorization.theory.core import Claim, Row, Verdict, row
from nora.streams import generator

HOLDS, CONDITIONAL, REFUTED, FREQUENCY = Verdict.HOLDS, Verdict.CONDITIONAL, Verdict.REFUTED, Verdict.FREQUENCY

# In the paper's order.
EXPECTED: dict[str, Verdict] = {
    "Definition 1": HOLDS,
    "Definition 2": HOLDS,
    "Theorem 1": CONDITIONAL,
    "Theorem 2": CONDITIONAL,
    "Remark on Theorem 2": REFUTED,
    "Theorem 3": HOLDS,
    "Theorem 4": HOLDS,
    "Theorem 5": CONDITIONAL,
    "Theorem 6": HOLDS,
    "Corollary 1": HOLDS,
    "Lemma 1": FREQUENCY,
    "Lemma 2": CONDITIONAL,
    "Lemma 3": HOLDS,
    "Lemma 4": HOLDS,
    "Lemma 5": CONDITIONAL,
    "Lemma 6": HOLDS,
    "Lemma 7": CONDITIONAL,
    "Lemma 8": HOLDS,
    "Lemma 9": CONDITIONAL,
    "Lemma 10": REFUTED,
    "Lemma 10, corrected": HOLDS,
    "Lemma 11": FREQUENCY,
    "Lemma 12": HOLDS,
    "Lemma 13": HOLDS,
    "Lemma 14": HOLDS,
    "Lemma 15": HOLDS,
    "Lemma 16": HOLDS,
    "Lemma 17": HOLDS,
    "Lemma 18": HOLDS,
    "Lemma 19": FREQUENCY,
    "Equation (12)": HOLDS,
    "Equation (17)": REFUTED,
    "Appendix A.2": HOLDS,
    "Appendix A.3": FREQUENCY,
    "Appendix A.4": HOLDS,
    "Appendix A.5": HOLDS,
}

FREQUENCIES = {"Lemma 1": 0.976, "Lemma 11": 0.999, "Lemma 19": 0.970, "Appendix A.3": 0.984}
# How far a run's frequency may be from the committed one: the draws are seeded, rounding may tip a few of them.
TOLERANCE = 0.02


def claims() -> list[Claim]:
    """Every file of this folder that has CLAIMS, in the paper's order (that of the committed verdicts)."""
    package = __name__.rpartition(".")[0]
    folder = import_module(package).__path__
    files = [import_module(f"{package}.{info.name}") for info in iter_modules(folder)]
    found: list[Claim] = [claim for file in files for claim in getattr(file, "CLAIMS", ())]
    order = list(EXPECTED)
    return sorted(found, key=lambda claim: order.index(claim.id) if claim.id in order else len(order))


def run_ledger(
    *,
    seed: int = 0,
    only: Sequence[str] = (),
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Check every claim (or those whose id is in ``only``), each from a stream of its own, so that order is free."""
    known = claims()
    unknown = sorted(set(only) - {claim.id for claim in known})
    if unknown:
        names = ", ".join(claim.id for claim in known)
        raise ValueError(f"only: given {', '.join(unknown)}, required ids of the ledger; choose among {names}")
    rows = []
    for claim in known:
        if not only or claim.id in only:
            rows.append(row(claim, claim.check(generator(seed, "theory", claim.id))))
            progress(rows[-1])
    return rows


def check_expectations(rows: Sequence[Row], *, complete: bool = True) -> list[str]:
    """One sentence per difference from the committed verdicts; empty where there is none."""
    problems = []
    for found in rows:
        expected = EXPECTED.get(found.id)
        if expected is None:
            problems.append(f"{found.id}: no committed verdict; add it to theory/expected.py")
        elif found.verdict is not expected:
            problems.append(
                f"{found.id}: {found.verdict.value} (worst {found.worst:.3e}, limit {found.limit:.3e}), "
                f"expected: {expected.value}"
            )
        elif found.frequency is not None and abs(found.frequency - FREQUENCIES[found.id]) > TOLERANCE:
            problems.append(
                f"{found.id}: frequency {found.frequency:.3f}, expected {FREQUENCIES[found.id]} +- {TOLERANCE}"
            )
    if complete:
        problems += [f"{id}: not tried" for id in EXPECTED if id not in {found.id for found in rows}]
    return problems

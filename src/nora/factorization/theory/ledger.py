"""Run every claim and compare with the committed verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import iter_modules

from nora.factorization.theory.claim import Claim, Row, row
from nora.factorization.theory.expected import EXPECTED, FREQUENCIES, TOLERANCE
from nora.streams import generator


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

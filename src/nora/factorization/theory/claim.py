"""What a claim of the paper is, what checking it finds, and how a finding becomes a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum

import torch


class Verdict(Enum):
    """The possible outcomes; BROKEN is a violation for which no exact counter-example is committed."""

    HOLDS = "holds"
    CONDITIONAL = "holds under an extra condition"
    REFUTED = "refuted"
    FREQUENCY = "holds with frequency"
    BROKEN = "broken"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check saw.

    instances, searched: random and adversarial ones tried. worst: the largest value of the claim's ``quantity``
    within its hypotheses (and within ``condition`` where there is one); the claim survives while it is at most
    ``limit``. counterexample: exact, verified in rationals, and outside ``condition``. frequency: of random draws.
    """

    instances: int
    searched: int
    worst: float
    limit: float
    condition: str = ""
    counterexample: str = ""
    frequency: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One Definition, Lemma, Theorem, Corollary, equation or remark; ``check`` draws from the generator it is given."""

    id: str
    statement: str
    quantity: str
    check: Callable[[torch.Generator], Finding]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the ledger, plain data."""

    id: str
    statement: str
    quantity: str
    instances: int
    searched: int
    worst: float
    limit: float
    verdict: Verdict
    condition: str
    counterexample: str
    frequency: float | None
    note: str

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self) | {"verdict": self.verdict.value}


def judge(finding: Finding) -> Verdict:
    """A condition needs a counter-example outside it, a refutation one inside the hypotheses."""
    survives = finding.worst <= finding.limit
    if finding.frequency is not None:
        return Verdict.FREQUENCY if survives else Verdict.BROKEN
    if finding.condition:
        return Verdict.CONDITIONAL if survives and finding.counterexample else Verdict.BROKEN
    if survives:
        return Verdict.HOLDS
    return Verdict.REFUTED if finding.counterexample else Verdict.BROKEN


def row(claim: Claim, finding: Finding) -> Row:
    """The claim beside what was found."""
    return Row(
        id=claim.id,
        statement=claim.statement,
        quantity=claim.quantity,
        instances=finding.instances,
        searched=finding.searched,
        worst=finding.worst,
        limit=finding.limit,
        verdict=judge(finding),
        condition=finding.condition,
        counterexample=finding.counterexample,
        frequency=finding.frequency,
        note=finding.note,
    )

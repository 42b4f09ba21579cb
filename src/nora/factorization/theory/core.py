"""What every check is made of: a claim and what was found, drawn instances, the adversarial search."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from nora.factorization.linalg import State, frobenius
from nora.factorization.problems import Asymmetric, Symmetric


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


# Rounding grows with the square of the condition numbers; identities are tested to 1e-10, so these stay moderate.
KAPPA, CONDITION = 10.0, 30.0


class Core(NamedTuple):
    """A spectrum s [N, r_A] with largest value 1 and a sketch W = Q^T Omega [N, r_A, r]: X_0 = Q diag(s) W."""

    s: Tensor
    W: Tensor
    valid: Tensor


def core(p: Tensor, r_A: int, r: int, *, kappa: float = KAPPA, condition: float = CONDITION) -> Core:
    """Spectra of condition number up to ``kappa``; sketches of condition number up to ``condition`` are valid."""
    u, w = p[:, :r_A].sigmoid(), p[:, r_A : r_A + r_A * r]
    s = (-u * torch.log(torch.tensor(kappa))).exp().sort(-1, descending=True).values
    W = w.reshape(-1, r_A, r)
    sigma = torch.linalg.svdvals(W)
    return Core(s / s[:, :1], W, sigma[:, -1] * condition > sigma[:, 0])


def core_size(r_A: int, r: int) -> int:
    """How many numbers ``core`` reads."""
    return r_A + r_A * r


def basis(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns."""
    Q: Tensor = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q
    return Q


def symmetric(c: Core, Q: Tensor) -> tuple[Symmetric, State]:
    """The batch of problems with these spectra, and their Nystrom starts."""
    r = c.W.shape[-1]
    return Symmetric(Q=Q, s=c.s, rank=r), State(Q @ (c.s[:, :, None] * c.W))


def asymmetric(c: Core, U: Tensor, V: Tensor) -> tuple[Asymmetric, State]:
    """As ``symmetric``, with Y_0 = 0 (5)."""
    r = c.W.shape[-1]
    X = U @ (c.s[:, :, None] * c.W)
    return Asymmetric(U=U, V=V, s=c.s, rank=r), State(X, X.new_zeros(len(X), V.shape[0], r))


def relative(difference: Tensor, *sizes: Tensor) -> Tensor:
    """||difference||_F over the sum of the norms of what was subtracted."""
    return frobenius(difference) / sum(frobenius(M) for M in sizes)


def smallest(B: Tensor) -> Tensor:
    """The smallest eigenvalue of a symmetric matrix."""
    values: Tensor = torch.linalg.eigvalsh((B + B.mT) / 2)
    return values[..., 0]


def eye(r: int) -> Tensor:
    """I_r."""
    return torch.eye(r, dtype=torch.float64)


def only(c: Core) -> Core:
    """The valid instances."""
    return Core(c.s[c.valid], c.W[c.valid], c.valid[c.valid])


Ratio = Callable[[Tensor], Tensor]

RANDOM, POPULATION, ELITES, ROUNDS = 1000, 192, 16, 36
SCALES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


class Worst(NamedTuple):
    """Instances tried at random, instances tried by the search, and the largest value seen."""

    random: int
    searched: int
    value: float

    def finding(self, *, limit: float, condition: str = "", counterexample: str = "", note: str = "") -> Finding:
        """What the check of a claim saw, in these instances."""
        return Finding(
            instances=self.random, searched=self.searched, worst=self.value, limit=limit,
            condition=condition, counterexample=counterexample, note=note,
        )  # fmt: skip


def worst_case(
    ratio: Ratio, dim: int, *, generator: torch.Generator, random: int = RANDOM, rounds: int = ROUNDS
) -> Worst:
    """Maximise ``ratio`` ([N, dim] -> [N]; NaN: not an instance of the claim) over ``random`` draws and a search."""
    points = torch.empty(0, dim, dtype=torch.float64)
    values = torch.empty(0, dtype=torch.float64)
    while len(values) < random:
        draw = 1.5 * torch.randn(random, dim, generator=generator, dtype=torch.float64)
        found = ratio(draw)
        inside = ~found.isnan()
        points, values = torch.cat([points, draw[inside]]), torch.cat([values, found[inside]])
    tried, searched = len(values), 0
    for i in range(rounds):
        order = values.argsort(descending=True, stable=True)[:ELITES]
        points, values = points[order], values[order]
        parents = points.repeat(POPULATION // ELITES, 1)
        noise = torch.randn(parents.shape, generator=generator, dtype=torch.float64)
        draw = parents + SCALES[i % len(SCALES)] * noise
        found = ratio(draw)
        inside = ~found.isnan()
        searched += int(inside.sum())
        points, values = torch.cat([points, draw[inside]]), torch.cat([values, found[inside]])
    return Worst(tried, searched, float(values.max()))


def combine(results: Iterable[Worst]) -> Worst:
    """The sum of the trials and the worst of the values."""
    listed = list(results)
    return Worst(sum(w.random for w in listed), sum(w.searched for w in listed), max(w.value for w in listed))


def within(valid: Tensor, values: Tensor) -> Tensor:
    """``values`` of the valid instances in their places, NaN elsewhere."""
    full = torch.full(valid.shape, torch.nan, dtype=torch.float64)
    full[valid] = values
    return full


def over(cases: Iterable[tuple[Ratio, int]], *, generator: torch.Generator, rounds: int = ROUNDS) -> Worst:
    """``worst_case`` over several shapes and settings: each case is (ratio, how many numbers it reads)."""
    return combine(worst_case(ratio, dim, generator=generator, rounds=rounds) for ratio, dim in cases)

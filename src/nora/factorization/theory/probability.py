"""Statements with unnamed constants that hold with high probability: Lemmas 1, 11 and 19, measured at tau = 0.1."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.factorization.linalg import State
from nora.factorization.theory.claim import Claim, Finding
from nora.factorization.theory.instances import basis, core, core_size, symmetric
from nora.factorization.theory.search import Ratio, over, within

TAU = 0.1
DRAWS = 500
# (C_1 tau)^{d-r+1}: the measured frequency of failure asks for this much of C_1, at most, over SHAPES and TAUS.
TAUS = (0.05, 0.1, 0.2)
C_1 = 4.0


def _gaussian(rows: int, columns: int, generator: torch.Generator, draws: int) -> Tensor:
    return torch.randn(draws, rows, columns, generator=generator, dtype=torch.float64)


def _start_value(shapes: tuple[tuple[int, int], ...], generator: torch.Generator) -> Finding:
    """sigma(X_0) against xi tau (sqrt(long) - sqrt(short - 1)) sigma_{r_A}(A), and the inequality behind it."""
    good, full, total = 0, 0, 0
    for r_A, r in shapes:
        short, long = min(r_A, r), max(r_A, r)
        s = torch.linspace(1.0, 0.1, r_A, dtype=torch.float64) if r_A > 1 else torch.ones(1, dtype=torch.float64)
        Q = basis(r_A + 5, r_A, generator)
        Omega = _gaussian(r_A + 5, r, generator, DRAWS)
        sigma = torch.linalg.svdvals(Q @ (s[:, None] * (Q.mT @ Omega)))
        smallest = sigma[:, short - 1]
        good += int((smallest >= TAU * (long**0.5 - (short - 1) ** 0.5) * s[-1]).sum())
        full += int((smallest > 1e-10 * sigma[:, 0]).sum())
        total += DRAWS

    def case(r_A: int, r: int) -> tuple[Ratio, int]:
        Q, short = basis(r_A + 2, r_A, generator), min(r_A, r)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r, kappa=1e3, condition=1e4)
            _, state = symmetric(c, Q)
            below = c.s[:, -1] * torch.linalg.svdvals(c.W)[:, short - 1]
            return within(c.valid, (below / _sigma(state, short))[c.valid])

        return ratio, core_size(r_A, r)

    worst = over((case(min(r_A, 4), min(r, 4)) for r_A, r in shapes), generator=generator)
    return Finding(
        instances=total + worst.random,
        searched=worst.searched,
        worst=worst.value if full == total else float("inf"),
        limit=1 + 1e-8,
        frequency=good / total,
        note=f"tau = {TAU}, xi = 1; rank(X_0) = min(r, r_A) in {full} of {total} draws",
    )


def _sigma(state: State, index: int) -> Tensor:
    values: Tensor = torch.linalg.svdvals(state.X)
    return values[:, index - 1]


def lemma_1(generator: torch.Generator) -> Finding:
    """Exact- and under-parametrised."""
    return _start_value(((1, 1), (4, 4), (20, 20), (8, 4), (40, 20)), generator)


def lemma_11(generator: torch.Generator) -> Finding:
    """Over-parametrised."""
    return _start_value(((1, 2), (4, 8), (20, 24), (20, 60)), generator)


def lemma_19(generator: torch.Generator) -> Finding:
    """P(sigma_r(W) < tau (sqrt d - sqrt(r-1))) as a frequency, and the C_1 it asks for."""
    good, total, asked = 0, 0, 0.0
    for d, r in ((1, 1), (4, 4), (16, 16), (5, 4), (17, 16), (6, 4), (40, 20)):
        smallest = torch.linalg.svdvals(_gaussian(d, r, generator, 2 * DRAWS))[:, r - 1]
        for tau in TAUS:
            failures = float((smallest < tau * (d**0.5 - (r - 1) ** 0.5)).double().mean())
            asked = max(asked, failures ** (1 / (d - r + 1)) / tau)
            if tau == TAU:
                good, total = good + round((1 - failures) * 2 * DRAWS), total + 2 * DRAWS
    return Finding(
        instances=total,
        searched=0,
        worst=asked,
        limit=C_1,
        frequency=good / total,
        note=f"frequency at tau = {TAU}; the constant C_1 that the measured tails ask for, e^{{-C_2 d}} left out",
    )


CLAIMS = (
    Claim(
        id="Lemma 1",
        statement="sigma_r(X_0) >= xi tau (sqrt(r_A) - sqrt(r-1)) sigma_{r_A}(A) with high probability (r <= r_A)",
        quantity="sigma_{r_A}(A) sigma_r(Q^T Omega) / sigma_r(X_0)",
        check=lemma_1,
    ),
    Claim(
        id="Lemma 11",
        statement="sigma_{r_A}(X_0) >= xi tau (sqrt(r) - sqrt(r_A-1)) sigma_{r_A}(A) with high probability (r > r_A)",
        quantity="sigma_{r_A}(A) sigma_{r_A}(Q^T Omega) / sigma_{r_A}(X_0)",
        check=lemma_11,
    ),
    Claim(
        id="Lemma 19",
        statement="P(sigma_r(W) < tau (sqrt(d) - sqrt(r-1))) <= (C_1 tau)^{d-r+1} + e^{-C_2 d}, W Gaussian d x r",
        quantity="C_1 asked for",
        check=lemma_19,
    ),
)

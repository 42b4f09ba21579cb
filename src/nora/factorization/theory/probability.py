"""Lemmas of linear algebra and of probability: 1, 11, 14 to 19."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from nora.factorization.linalg import State
from nora.factorization.theory.core import (
    Claim,
    Finding,
    Ratio,
    Worst,
    basis,
    core,
    core_size,
    eye,
    over,
    smallest,
    symmetric,
    within,
)


def _found(worst: Worst, limit: float) -> Finding:
    return worst.finding(limit=limit)


def lemma_14(generator: torch.Generator) -> Finding:
    """In rationals: the unrolled equality, and the bound."""
    draws = torch.randint(1, 50, (1000, 4), generator=generator).tolist()
    worst = Fraction(0)
    for a, b, c, d in draws:
        theta, beta, first = Fraction(a, a + b), Fraction(c, 7), Fraction(d, 3)
        value = first
        for t in range(6):
            value = (1 - theta) * value + beta
            left = (1 - theta) ** (t + 1)
            if value != left * first + beta * (1 - left) / theta:
                return Finding(instances=len(draws), searched=0, worst=float("inf"), limit=1.0)
            worst = max(worst, value / (left * first + beta / theta))
    return Finding(instances=len(draws), searched=0, worst=float(worst), limit=1.0)


def lemma_15(generator: torch.Generator) -> Finding:
    """Weyl's inequality for the smallest eigenvalue."""

    def case(r: int) -> tuple[Ratio, int]:
        def ratio(p: Tensor) -> Tensor:
            G, H = (M.reshape(-1, r, r) for M in torch.split(p, r * r, dim=1))
            A, B = G @ G.mT, H @ H.mT
            scale = torch.diagonal(A + B, dim1=-2, dim2=-1).sum(-1)
            return 1 + (smallest(A) + smallest(B) - smallest(A + B)) / scale

        return ratio, 2 * r * r

    return _found(over((case(r) for r in (1, 2, 4)), generator=generator), 1 + 1e-12)


def lemma_16(generator: torch.Generator) -> Finding:
    """A_{t+1} = u_t alpha A_t^2 with u_t in [0, 1] and A_0 <= 1 / (2 alpha)."""

    def ratio(p: Tensor) -> Tensor:
        alpha = p[:, 0].exp()
        value = p[:, 1].sigmoid() / (2 * alpha)
        worst = torch.zeros_like(value)
        for t in range(5):
            value = (2 * p[:, 2 + t]).sigmoid() * alpha * value**2
            worst = torch.maximum(worst, value * alpha * 2.0 ** (2.0 ** (t + 1)))
        return worst

    return _found(over([(ratio, 7)], generator=generator), 1 + 1e-12)


def lemma_17(generator: torch.Generator) -> Finding:
    """Smallest non-zero singular values; A of full column rank, B of any rank k >= 1 (built as a product)."""

    def case(m: int, n: int, q: int, k: int) -> tuple[Ratio, int]:
        def ratio(p: Tensor) -> Tensor:
            A = p[:, : m * n].reshape(-1, m, n)
            left = p[:, m * n : m * n + n * k].reshape(-1, n, k)
            B = left @ p[:, m * n + n * k :].reshape(-1, k, q)
            a, b, ab = (torch.linalg.svdvals(M) for M in (A, B, A @ B))
            valid = (a[:, n - 1] > 1e-3 * a[:, 0]) & (b[:, k - 1] > 1e-3 * b[:, 0])
            return within(valid, (a[:, n - 1] * b[:, k - 1] / ab[:, k - 1])[valid])

        return ratio, m * n + n * k + k * q

    shapes = ((3, 2, 2, 2), (4, 3, 5, 3), (4, 3, 3, 1), (5, 3, 4, 2))
    return _found(over((case(*shape) for shape in shapes), generator=generator), 1 + 1e-8)


def lemma_18(generator: torch.Generator) -> Finding:
    """A = U diag(lambda) U^T with lambda in [0, 1], B = I - A."""

    def case(r: int) -> tuple[Ratio, int]:
        def ratio(p: Tensor) -> Tensor:
            U = torch.linalg.qr(p[:, r:].reshape(-1, r, r)).Q
            A = (U * (5 * p[:, None, :r]).sigmoid()) @ U.mT
            traces = [torch.diagonal(M, dim1=-2, dim2=-1).sum(-1) for M in (A, eye(r) - A)]
            return torch.maximum(*traces) / r

        return ratio, r + r * r

    return _found(over((case(r) for r in (1, 2, 4)), generator=generator), 1 + 1e-12)


_NUMERICS = (
    Claim(
        id="Lemma 14",
        statement="A_{t+1} = (1-theta) A_t + beta unrolls to (1-theta)^{t+1} A_0 + beta (1 - (1-theta)^{t+1}) / theta, "
        "at most (1-theta)^{t+1} A_0 + beta / theta",
        quantity="left / right, in rationals",
        check=lemma_14,
    ),
    Claim(
        id="Lemma 15",
        statement="A, B positive semidefinite: lambda_min(A + B) >= lambda_min(A) + lambda_min(B)",
        quantity="1 + (right - left) / trace(A + B)",
        check=lemma_15,
    ),
    Claim(
        id="Lemma 16",
        statement="A_{t+1} <= alpha A_t^2 and A_0 <= 1/(2 alpha) give A_{t+1} <= (1/alpha) 2^{-2^{t+1}}",
        quantity="left / right",
        check=lemma_16,
    ),
    Claim(
        id="Lemma 17",
        statement="A of full column rank, B non-zero: sigma_min(A B) >= sigma_min(A) sigma_min(B), the smallest "
        "non-zero values",
        quantity="right / left",
        check=lemma_17,
    ),
    Claim(
        id="Lemma 18",
        statement="A, B positive semidefinite with A + B = I_r: Tr(A) <= r and Tr(B) <= r",
        quantity="trace / r",
        check=lemma_18,
    ),
)


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


_PROBABILITY = (
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

CLAIMS = (*_NUMERICS, *_PROBABILITY)

"""Appendix D: Lemmas 14 to 18."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from nora.factorization.theory.claim import Claim, Finding
from nora.factorization.theory.instances import eye, smallest
from nora.factorization.theory.search import Ratio, Worst, over, within


def _found(worst: Worst, limit: float) -> Finding:
    return Finding(instances=worst.random, searched=worst.searched, worst=worst.value, limit=limit)


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


CLAIMS = (
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

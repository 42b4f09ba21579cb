"""Theorems 1 and 5: both phases with the proofs' constants, in the recursion (12) that the two share."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.factorization.linalg import frobenius
from nora.factorization.solvers.scaled_gd_pinv import Solver as PinvSolver
from nora.factorization.theory import exact
from nora.factorization.theory.claim import Claim, Finding
from nora.factorization.theory.instances import basis, core, core_size, only, relative, smallest, symmetric
from nora.factorization.theory.search import Ratio, over, within

# Phase 1 with eta = 1 / (12 kappa^3 ||A||_F): (1 + 3 kappa) eta ||A||_F <= 1 / (3 kappa^2), half of what phase 2 needs.
STEP = 12.0
KAPPA = 2.0


def recursion(B: Tensor, S: Tensor, eta: Tensor | float) -> Tensor:
    """The right-hand side of (12), of (28) and of (32)."""
    inverse: Tensor = torch.linalg.solve(B, S)
    return (1 - eta) ** 2 * B + 2 * eta * (1 - eta) * S + eta**2 * S @ inverse


def two_phases(s: Tensor, B: Tensor) -> Tensor:
    """Largest error / bound at the end of phase 1 (2 / (3 kappa^2)) and along phase 2 (Lemma 8)."""
    S, kappa = torch.diag_embed(s), 1 / s[:, -1]
    eta = 1 / (STEP * kappa**3 * s.norm(dim=-1))
    length = (torch.log(3 * kappa**2 * frobenius(B - S)).clamp_min(0) / eta).ceil()
    for t in range(int(length.max())):
        B = torch.where((t < length)[:, None, None], recursion(B, S, eta[:, None, None]), B)
    worst = frobenius(B - S) * 3 * kappa**2 / 2
    for t in range(1, 5):
        B = recursion(B, S, 0.5)
        bound = (4 / (3 * kappa**2) * 2.0 ** (-(2.0**t))).clamp_min(1e-12)
        worst = torch.maximum(worst, frobenius(B - S) / bound)
    return worst


def _phases(r_A: int, r: int) -> tuple[Ratio, int]:
    def ratio(p: Tensor) -> Tensor:
        c = core(p, r_A, r, kappa=KAPPA)
        s, W = c.s[c.valid], c.W[c.valid]
        Phi = s[:, :, None] * W
        B = Phi @ Phi.mT
        # Large xi, as in Lemma 7.
        scale = s[:, -1] / (3 * smallest(B)) * p[c.valid, -1].abs().exp()
        return within(c.valid, two_phases(s, B * scale[:, None, None]))

    return ratio, core_size(r_A, r) + 1


def theorem_1(generator: torch.Generator) -> Finding:
    """Exact-parametrised."""
    worst = over((_phases(r, r) for r in (1, 2, 3)), generator=generator, rounds=3)
    return Finding(
        instances=worst.random,
        searched=worst.searched,
        worst=worst.value,
        limit=1 + 1e-6,
        condition="sigma_r(B_0) >= sigma_r(A)/3 (a large xi) and T_1 = log(3 kappa^2 e_0) / eta, which depends on xi",
        counterexample=exact.no_uniform_count(),
        note="eta = 1 / (12 kappa^3 ||A||_F); kappa <= 2 here, larger ones are measured in Table 1",
    )


def theorem_5(generator: torch.Generator) -> Finding:
    """Over-parametrised: the same recursion (28), from the pseudo-inverse step itself, then the two phases."""

    def case(r_A: int, r: int) -> tuple[Ratio, int]:
        Q = basis(r_A + r, r_A, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r)
            problem, state = symmetric(only(c), Q)
            before, after = (Q.mT @ M for M in (state.X, PinvSolver(eta=0.3).step(problem, state, 0).X))
            right = recursion(before @ before.mT, torch.diag_embed(problem.s), 0.3)
            residual = relative(after @ after.mT - right, after @ after.mT, before @ before.mT)
            return within(c.valid, residual)

        return ratio, core_size(r_A, r)

    residual = over((case(2, 3), case(3, 6)), generator=generator)
    worst = over((_phases(r_A, r) for r_A, r in ((1, 2), (2, 4))), generator=generator, rounds=3)
    return Finding(
        instances=worst.random + residual.random,
        searched=worst.searched + residual.searched,
        worst=worst.value if residual.value < 1e-10 else float("inf"),
        limit=1 + 1e-6,
        condition="sigma_{r_A}(B_0) >= sigma_{r_A}(A)/3 (a large xi) and T_1 depending on xi, as for Theorem 1",
        counterexample=exact.no_uniform_count(),
        note=f"(28) holds to {residual.value:.0e}; the counter-example pads X_0 with a zero column",
    )


CLAIMS = (
    Claim(
        id="Theorem 1",
        statement="Nystrom start, any xi. Phase 1: eta = O(1 / (kappa^3 ||A||_F)) gives error <= O(1/kappa^2) after "
        "T_1 = O(kappa^3 sqrt(r) log kappa). Phase 2: eta = 1/2 gives error <= eps after O(log log (1/(kappa eps)))",
        quantity="error / bound at the end of phase 1 and along phase 2",
        check=theorem_1,
    ),
    Claim(
        id="Theorem 5",
        statement="Over-parametrised, pseudo-inverse update (26): both phases as in Theorem 1",
        quantity="error / bound, with (28) to 1e-10",
        check=theorem_5,
    ),
)

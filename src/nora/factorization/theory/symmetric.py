"""Section 2.3 and Appendix B.2: symmetric, exact-parametrised."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.factorization.linalg import State, frobenius
from nora.factorization.problems import Symmetric
from nora.factorization.solvers.scaled_gd import Solver
from nora.factorization.theory import exact
from nora.factorization.theory.claim import Claim, Finding
from nora.factorization.theory.instances import basis, core, core_size, only, relative, smallest, symmetric
from nora.factorization.theory.phases import recursion
from nora.factorization.theory.search import Ratio, over, within

SHAPES = (1, 2, 4)
ETAS = (0.1, 0.5, 0.9, 1.0)


def equation_12(generator: torch.Generator) -> Finding:
    """B_{t+1} from one ScaledGD step against (12)."""

    def case(r: int, eta: float) -> tuple[Ratio, int]:
        Q = basis(r + 3, r, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r, r)
            problem, state = symmetric(only(c), Q)
            Phi, after = Q.mT @ state.X, Q.mT @ Solver(eta=eta).step(problem, state, 0).X
            right = recursion(Phi @ Phi.mT, torch.diag_embed(problem.s), eta)
            return within(c.valid, relative(after @ after.mT - right, after @ after.mT, Phi @ Phi.mT))

        return ratio, core_size(r, r)

    worst = over((case(r, eta) for r in SHAPES for eta in ETAS), generator=generator)
    return Finding(instances=worst.random, searched=worst.searched, worst=worst.value, limit=1e-10)


def lemma_2(generator: torch.Generator) -> Finding:
    """Five steps: no residual, and the smallest eigenvalue above its bound."""

    def case(r: int, eta: float) -> tuple[Ratio, int]:
        Q = basis(r + 3, r, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r, r)
            problem, state = symmetric(only(c), Q)
            sigma, first = problem.s[:, -1], smallest(state.X.mT @ state.X)
            worst = torch.zeros(len(sigma), dtype=torch.float64)
            for t in range(5):
                state = Solver(eta=eta).step(problem, state, t)
                left = 1 - eta
                bound = left ** (2 * t + 2) * first + left * sigma - left ** (2 * t + 3) * sigma
                residual = relative(state.X - Q @ (Q.mT @ state.X), state.X)
                found = torch.where(residual < 1e-12, bound / smallest(state.X.mT @ state.X), torch.inf)
                worst = torch.maximum(worst, found)
            return within(c.valid, worst)

        return ratio, core_size(r, r)

    worst = over((case(r, eta) for r in SHAPES for eta in ETAS), generator=generator)
    return Finding(
        instances=worst.random,
        searched=worst.searched,
        worst=worst.value,
        limit=1 + 1e-8,
        condition="eta <= 1",
        counterexample=exact.step_above_one(),
    )


def lemma_7(generator: torch.Generator) -> Finding:
    """The proof's explicit bound: e_{t+1} <= (1 + 3 kappa) eta ||A||_F + (1 - eta)^{t+1} e_0."""

    def case(r: int, eta: float) -> tuple[Ratio, int]:
        Q = basis(r + 2, r, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r, r)
            problem, state = symmetric(only(c), Q)
            kappa = 1 / problem.s[:, -1]
            # Large xi: X_0 rescaled so that sigma_r(B_0) is at least sigma_r(A) / 3, with equality where p's last is 0.
            least = (3 * kappa * smallest(state.X.mT @ state.X)).rsqrt() * p[c.valid, -1].abs().exp()
            state = State(state.X * least[:, None, None])
            start = problem.metrics(state)["error"]
            worst = torch.zeros_like(start)
            for t in range(8):
                state = Solver(eta=eta).step(problem, state, t)
                bound = (1 + 3 * kappa) * eta * problem.norm + (1 - eta) ** (t + 1) * start
                worst = torch.maximum(worst, problem.metrics(state)["error"] / bound)
            return within(c.valid, worst)

        return ratio, core_size(r, r) + 1

    worst = over((case(r, eta) for r in SHAPES for eta in (0.01, 0.1, 0.5, 2 / 3)), generator=generator)
    return Finding(
        instances=worst.random,
        searched=worst.searched,
        worst=worst.value,
        limit=1 + 1e-8,
        condition="eta <= 2/3 and xi so large that sigma_r(B_0) >= sigma_r(A) / 3",
        counterexample=exact.small_start_overshoots(),
    )


def lemma_8(generator: torch.Generator) -> Finding:
    """From ||B - Sigma|| <= 2 / (3 kappa^2) at eta = 1/2, and the identity E_{t+1} = E_t B_t^{-1} E_t / 4 behind it."""

    def case(r: int) -> tuple[Ratio, int]:
        Q = basis(r + 2, r, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r, r)
            kappa, S = 1 / c.s[:, -1], torch.diag_embed(c.s)
            skew = c.W + c.W.mT
            radius = p[:, -1].sigmoid() * 2 / (3 * kappa**2) / frobenius(skew).clamp_min(1e-9)
            B = S + radius[:, None, None] * skew
            problem, state = Symmetric(Q=Q, s=c.s, rank=r), State(Q @ torch.linalg.cholesky(B))
            worst = torch.zeros_like(kappa)
            for t in range(1, 5):
                E = B - S
                state = Solver(eta=0.5).step(problem, state, t)
                core_after = Q.mT @ state.X
                B, predicted = core_after @ core_after.mT, E @ torch.linalg.solve(B, E) / 4
                broken = frobenius(B - S - predicted) > 1e-12
                # Below 1e-12 the bound is under rounding and says nothing more.
                bound = (4 / (3 * kappa**2) * 2.0 ** (-(2.0**t))).clamp_min(1e-12)
                found = torch.where(broken, torch.inf, problem.metrics(state)["error"] / bound)
                worst = torch.maximum(worst, found)
            return worst

        return ratio, core_size(r, r) + 1

    worst = over((case(r) for r in SHAPES), generator=generator)
    return Finding(
        instances=worst.random,
        searched=worst.searched,
        worst=worst.value,
        limit=1 + 1e-8,
        note="sharper than the proof: e_{t+1} <= e_t^2 / (4 sigma_r(B_t)), kappa where the proof has kappa^2",
    )


CLAIMS = (
    Claim(
        id="Equation (12)",
        statement="B_{t+1} = (1-eta)^2 B_t + 2 eta (1-eta) Sigma + eta^2 Sigma B_t^{-1} Sigma, B_t = Phi_t Phi_t^T",
        quantity="relative residual",
        check=equation_12,
    ),
    Claim(
        id="Lemma 2",
        statement="X_t = Q Phi_t, and sigma_r(X_{t+1} X_{t+1}^T) >= (1-eta)^{2t+2} sigma_r(X_0 X_0^T) "
        "+ (1-eta) sigma_r(A) - (1-eta)^{2t+3} sigma_r(A)",
        quantity="bound / sigma_r, with residual <= 1e-12",
        check=lemma_2,
    ),
    Claim(
        id="Lemma 7",
        statement="eta = O(1 / (kappa^3 ||A||_F)) gives ||X_t X_t^T - A||_F <= O(1/kappa^2) after "
        "O(kappa^3 sqrt(r) log kappa) iterations; explicitly e_{t+1} <= (1+3 kappa) eta ||A||_F + (1-eta)^{t+1} e_0",
        quantity="error / explicit bound",
        check=lemma_7,
    ),
    Claim(
        id="Lemma 8",
        statement="eta = 1/2, sigma_r(B) >= sigma_r(A)/3 and ||B - Sigma||_F <= 2/(3 kappa^2) at T_2 give "
        "||X_{t+1} X_{t+1}^T - A||_F <= 4/(3 kappa^2) 2^{-2^{t+1-T_2}}",
        quantity="error / bound, with E_{t+1} = E_t B_t^{-1} E_t / 4 to 1e-12",
        check=lemma_8,
    ),
)

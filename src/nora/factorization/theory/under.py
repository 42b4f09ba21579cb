"""Section 2.4 and Appendix B.3: symmetric, under-parametrised."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.factorization.linalg import State
from nora.factorization.problems import Symmetric
from nora.factorization.solvers.scaled_gd import Solver
from nora.factorization.theory import exact
from nora.factorization.theory.claim import Claim, Finding
from nora.factorization.theory.instances import basis, core, core_size, only, relative, smallest, symmetric
from nora.factorization.theory.search import Ratio, over, within

SHAPES = ((2, 1), (3, 2), (5, 3))


def _core(problem: Symmetric, state: State) -> Tensor:
    """B = X^T A^+ X."""
    C = problem.Q.mT @ state.X
    return C.mT @ (C / problem.s[:, :, None])


def definition_1(generator: torch.Generator) -> Finding:
    """The weak error does not see a rotation of X."""

    def case(r_A: int, r: int) -> tuple[Ratio, int]:
        Q, U = basis(r_A + 2, r_A, generator), basis(r, r, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r)
            problem, state = symmetric(only(c), Q)
            plain, turned = (problem.metrics(State(X))["weak"] for X in (state.X, state.X @ U))
            return within(c.valid, (plain - turned).abs() / (1 + plain))

        return ratio, core_size(r_A, r)

    worst = over((case(*shape) for shape in SHAPES), generator=generator)
    return Finding(
        instances=worst.random,
        searched=worst.searched,
        worst=worst.value,
        limit=1e-10,
        note=f"strictly weaker than global optimality: {exact.weak_but_not_optimal()}",
    )


def lemma_3(generator: torch.Generator) -> Finding:
    """X* = Q_1 Sigma_1^{1/2} U."""

    def case(r_A: int, r: int) -> tuple[Ratio, int]:
        Q = basis(r_A + 2, r_A, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r, kappa=1e4)
            U = torch.linalg.qr(c.W[:, :r]).Q
            X = Q[:, :r] @ (c.s[:, :r, None].sqrt() * U)
            return Symmetric(Q=Q, s=c.s, rank=r).metrics(State(X))["weak"]

        return ratio, core_size(r_A, r)

    worst = over((case(*shape) for shape in (*SHAPES, (3, 3))), generator=generator)
    return Finding(instances=worst.random, searched=worst.searched, worst=worst.value, limit=1e-12)


def lemma_4(generator: torch.Generator) -> Finding:
    """No residual after five steps, and (15)."""

    def case(r_A: int, r: int, eta: float) -> tuple[Ratio, int]:
        Q = basis(r_A + 3, r_A, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r)
            problem, state = symmetric(only(c), Q)
            Phi = Q.mT @ state.X
            worst = torch.zeros(len(Phi), dtype=torch.float64)
            for t in range(5):
                state = Solver(eta=eta).step(problem, state, t)
                scaled = problem.s[:, :, None] * Phi
                right = (1 - eta) * Phi + eta * scaled @ torch.linalg.inv(Phi.mT @ Phi)
                after = Q.mT @ state.X
                worst = torch.maximum(worst, relative(state.X - Q @ after, state.X))
                worst = torch.maximum(worst, relative(after - right, after, Phi))
                Phi = after
            return within(c.valid, worst)

        return ratio, core_size(r_A, r)

    worst = over((case(*shape, eta) for shape in SHAPES for eta in (0.1, 0.5, 0.9)), generator=generator)
    return Finding(
        instances=worst.random,
        searched=worst.searched,
        worst=worst.value,
        limit=1e-9,
        note="wherever the iteration is defined, which Lemma 9 grants for eta <= 1",
    )


def lemma_5(generator: torch.Generator) -> Finding:
    """Every possible limit Q Sigma^{1/2} V, V^T V = I, against 2 r + 2 r^{3/2} + r sigma_{r+1}(A)."""

    def case(r_A: int, r: int) -> tuple[Ratio, int]:
        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r, kappa=1e4)
            limit = c.s[:, :, None].sqrt() * torch.linalg.qr(c.W).Q
            best = torch.zeros_like(limit)
            best[:, :r] = torch.diag_embed(c.s[:, :r].sqrt())
            squared: Tensor = ((limit - best) ** 2).sum((-2, -1))
            bound: Tensor = 2 * r + 2 * r**1.5 + r * c.s[:, r]
            return squared / bound

        return ratio, core_size(r_A, r)

    worst = over((case(*shape) for shape in SHAPES), generator=generator)
    return Finding(
        instances=worst.random,
        searched=worst.searched,
        worst=worst.value,
        limit=1.0,
        condition="eta < 1, so that X_t settles at a weak optimum",
        counterexample=exact.step_one_never_settles(),
        note="the square of the distance; it holds without the rotation that the proof allows",
    )


def lemma_9(generator: torch.Generator) -> Finding:
    """Five steps against the lower bound."""

    def case(r_A: int, r: int, eta: float) -> tuple[Ratio, int]:
        Q = basis(r_A + 2, r_A, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r)
            problem, state = symmetric(only(c), Q)
            first, left = smallest(_core(problem, state)), 1 - eta
            worst = torch.zeros_like(first)
            for t in range(5):
                state = Solver(eta=eta).step(problem, state, t)
                bound = left - left ** (2 * t + 3) + left ** (2 * t + 2) * first
                worst = torch.maximum(worst, bound / smallest(_core(problem, state)))
            return within(c.valid, worst)

        return ratio, core_size(r_A, r)

    worst = over((case(*shape, eta) for shape in SHAPES for eta in (0.1, 0.5, 0.9, 1.0)), generator=generator)
    return Finding(
        instances=worst.random,
        searched=worst.searched,
        worst=worst.value,
        limit=1 + 1e-8,
        condition="eta <= 1",
        counterexample=exact.step_above_one_under(),
    )


CLAIMS = (
    Claim(
        id="Definition 1",
        statement="X is weakly optimal to (1) if X^T A^+ X = I_r",
        quantity="change of ||X^T A^+ X - I|| under X -> X U",
        check=definition_1,
    ),
    Claim(
        id="Lemma 3",
        statement="Every global optimum of (1) is weakly optimal",
        quantity="||X*^T A^+ X* - I||_F",
        check=lemma_3,
    ),
    Claim(
        id="Lemma 4",
        statement="X_t = Q Phi_t for all t, Phi_{t+1} = (1-eta) Phi_t + eta Sigma Phi_t (Phi_t^T Phi_t)^{-1}",
        quantity="relative residual over five steps",
        check=lemma_4,
    ),
    Claim(
        id="Lemma 5",
        statement="lim ||X_t - X*||_F <= O(r^{3/4}); explicitly squared <= 2 r + 2 r^{3/2} + r sigma_{r+1}(A)",
        quantity="squared distance / bound",
        check=lemma_5,
    ),
    Claim(
        id="Lemma 9",
        statement="sigma_r(B_{t+1}) >= (1-eta) - (1-eta)^{2t+3} + (1-eta)^{2t+2} sigma_r(B_0), B_t = X_t^T A^+ X_t",
        quantity="bound / sigma_r(B_{t+1})",
        check=lemma_9,
    ),
)

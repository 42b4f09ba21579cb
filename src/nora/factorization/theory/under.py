"""The under-parametrised symmetric problem: weak optimality, Lemmas 3 to 5, 9, 10, Theorem 2."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.factorization.linalg import State, frobenius
from nora.factorization.problems import Symmetric
from nora.factorization.solvers import ScaledGD
from nora.factorization.theory import exact
from nora.factorization.theory.core import (
    Claim,
    Finding,
    Ratio,
    basis,
    core,
    core_size,
    only,
    over,
    relative,
    smallest,
    symmetric,
    within,
)

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
    return worst.finding(limit=1e-10, note=f"strictly weaker than global optimality: {exact.weak_but_not_optimal()}")


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
    return worst.finding(limit=1e-12)


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
                state = ScaledGD(eta=eta).step(problem, state, t)
                scaled = problem.s[:, :, None] * Phi
                right = (1 - eta) * Phi + eta * scaled @ torch.linalg.inv(Phi.mT @ Phi)
                after = Q.mT @ state.X
                worst = torch.maximum(worst, relative(state.X - Q @ after, state.X))
                worst = torch.maximum(worst, relative(after - right, after, Phi))
                Phi = after
            return within(c.valid, worst)

        return ratio, core_size(r_A, r)

    worst = over((case(*shape, eta) for shape in SHAPES for eta in (0.1, 0.5, 0.9)), generator=generator)
    return worst.finding(limit=1e-9, note="wherever the iteration is defined, which Lemma 9 grants for eta <= 1")


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
    return worst.finding(
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
                state = ScaledGD(eta=eta).step(problem, state, t)
                bound = left - left ** (2 * t + 3) + left ** (2 * t + 2) * first
                worst = torch.maximum(worst, bound / smallest(_core(problem, state)))
            return within(c.valid, worst)

        return ratio, core_size(r_A, r)

    worst = over((case(*shape, eta) for shape in SHAPES for eta in (0.1, 0.5, 0.9, 1.0)), generator=generator)
    return worst.finding(limit=1 + 1e-8, condition="eta <= 1", counterexample=exact.step_above_one_under())


_UNDER = (
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


_WEAK_SHAPES = ((2, 1), (3, 2), (4, 3))


def _kantorovich(s: Tensor) -> Tensor:
    """(kappa + 1)^2 / (4 kappa)."""
    kappa = s[:, 0] / s[:, -1]
    return (kappa + 1) ** 2 / (4 * kappa)


def _lemma_10(r_A: int, r: int, corrected: bool) -> tuple[Ratio, int]:
    def ratio(p: Tensor) -> Tensor:
        c = core(p, r_A, r, kappa=1e3)
        s, Phi = c.s[c.valid], c.W[c.valid]
        Theta = Phi @ torch.linalg.inv(Phi.mT @ Phi)
        B = Phi.mT @ (Phi / s[:, :, None])
        bound = _kantorovich(s) * r**0.5 if corrected else torch.full_like(s[:, 0], float(r))
        return within(c.valid, frobenius(Theta.mT @ (s[:, :, None] * Theta)) * smallest(B) / bound)

    return ratio, core_size(r_A, r)


def lemma_10(generator: torch.Generator) -> Finding:
    """As printed."""
    worst = over((_lemma_10(*shape, False) for shape in _WEAK_SHAPES), generator=generator)
    return worst.finding(
        limit=1 + 1e-9,
        counterexample=exact.lemma_10(),
        note="for r = 1 it is the reverse of Cauchy and Schwarz; step (a) of (25) is what fails",
    )


def lemma_10_corrected(generator: torch.Generator) -> Finding:
    """With the constant of the matrix Kantorovich inequality (Marshall and Olkin, 1990)."""
    worst = over((_lemma_10(*shape, True) for shape in _WEAK_SHAPES), generator=generator)
    return worst.finding(limit=1 + 1e-9)


def _bound_17(r_A: int, r: int, eta: float, corrected: bool) -> tuple[Ratio, int]:
    """Six steps from sigma_r(B_0) >= 1/3 against (17), times the constant in the corrected form."""
    Q = basis(r_A, r_A, torch.Generator().manual_seed(r_A))

    def ratio(p: Tensor) -> Tensor:
        c = core(p, r_A, r, kappa=1e3)
        problem, state = symmetric(only(c), Q)
        scale = (3 * smallest(_core(problem, state))).rsqrt() * p[c.valid, -1].abs().exp()
        state = State(state.X * scale[:, None, None])
        first = problem.metrics(state)["weak"]
        constant = _kantorovich(problem.s) * r**0.5 if corrected else torch.full_like(first, float(r))
        worst = torch.zeros_like(first)
        for t in range(6):
            state = ScaledGD(eta=eta).step(problem, state, t)
            bound = eta * r**0.5 + 3 * eta * constant + (1 - eta) ** (t + 1) * first
            worst = torch.maximum(worst, problem.metrics(state)["weak"] / bound)
        return within(c.valid, worst)

    return ratio, core_size(r_A, r) + 1


def equation_17(generator: torch.Generator) -> Finding:
    """As printed in the proof of Theorem 2."""
    worst = over((_bound_17(*shape, eta, False) for shape in _WEAK_SHAPES for eta in (0.1, 0.5)), generator=generator)
    return worst.finding(limit=1 + 1e-9, counterexample=exact.bound_17(), note="it falls with Lemma 10")


def theorem_2(generator: torch.Generator) -> Finding:
    """With the constant that Lemma 10 should have; (ii) follows by eta = O(eps / (r K))."""
    cases = (_bound_17(*shape, eta, True) for shape in _WEAK_SHAPES for eta in (0.01, 0.1, 0.5, 2 / 3))
    worst = over(cases, generator=generator)
    return worst.finding(
        limit=1 + 1e-9,
        condition="eta <= 2/3, xi so large that sigma_r(B_0) >= 1/3, and constants that hold (kappa+1)^2 / (4 kappa)",
        counterexample=exact.bound_17(),
        note="at eta = 1 it does not converge at all: " + exact.step_one_never_settles(),
    )


def no_kappa(generator: torch.Generator) -> Finding:
    """Exact one-step overshoots along a family in which only kappa grows."""
    del generator  # nothing is drawn: the family is given
    values = [exact.overshoot(j) for j in (1, 2, 3)]
    growth = float(values[-1] / values[-2])
    return Finding(
        instances=len(values),
        searched=0,
        worst=growth,
        limit=1.0,
        counterexample="A = diag(1, 1/kappa), X_0 = (1, 1)/sqrt(kappa), eta = 1/10, so |B_0 - 1| = 1/kappa: "
        "|B_1 - 1| = "
        + ", ".join(f"{float(v):.4g} at kappa = {100**j:.0e}" for j, v in zip((1, 2, 3), values, strict=True)),
        note="the overshoot eta^2 kappa / 4 costs log(kappa) / (2 eta) further iterations",
    )


_WEAK = (
    Claim(
        id="Lemma 10",
        statement="||Theta^T Sigma Theta||_F <= r / sigma_r(B), Theta = Phi (Phi^T Phi)^{-1}, B = Phi^T Sigma^{-1} Phi",
        quantity="left / right",
        check=lemma_10,
    ),
    Claim(
        id="Lemma 10, corrected",
        statement="||Theta^T Sigma Theta||_F <= K sqrt(r) / sigma_r(B), K = (kappa+1)^2 / (4 kappa) (not in the paper)",
        quantity="left / right",
        check=lemma_10_corrected,
    ),
    Claim(
        id="Equation (17)",
        statement="||B_{t+1} - I||_F <= eta sqrt(r) + 3 r eta + (1-eta)^{t+1} ||B_0 - I||_F for eta <= 2/3, "
        "sigma_r(B_0) >= 1/3",
        quantity="left / right",
        check=equation_17,
    ),
    Claim(
        id="Theorem 2",
        statement="(i) any constant eta < 1: ||X_t^T A^+ X_t - I||_F <= O(eta r) + eps in O(log(1/eps)) iterations; "
        "(ii) eta = O(eps/r): <= eps in O((r/eps) log(1/eps))",
        quantity="left / (eta sqrt(r) + 3 K sqrt(r) eta + (1-eta)^{t+1} ||B_0 - I||_F)",
        check=theorem_2,
    ),
    Claim(
        id="Remark on Theorem 2",
        statement="The convergence under both choices of eta has no dependence on kappa",
        quantity="growth of |B_1 - 1| while kappa grows 100-fold",
        check=no_kappa,
    ),
)

CLAIMS = (*_UNDER, *_WEAK)

"""Section 3 and Appendix C: asymmetric problems."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nora.factorization.linalg import State, frobenius
from nora.factorization.problems import Asymmetric
from nora.factorization.solvers import ScaledGD, ScaledGDPinv
from nora.factorization.theory.core import (
    CONDITION,
    Claim,
    Finding,
    Ratio,
    Worst,
    asymmetric,
    basis,
    core,
    core_size,
    only,
    over,
    relative,
    within,
)

EXACT = ((1, 1), (2, 2), (4, 4))
UNDER = ((2, 1), (3, 2), (5, 3))
OVER = ((1, 2), (2, 3), (3, 6))


def _bases(r_A: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return basis(r_A + 4, r_A, generator), basis(r_A + 3, r_A, generator)


def _found(worst: Worst, limit: float, note: str = "") -> Finding:
    return worst.finding(limit=limit, note=note)


def lemma_6(generator: torch.Generator) -> Finding:
    """No residual in X or Y after five steps."""

    def case(r_A: int, r: int, eta: float) -> tuple[Ratio, int]:
        U, V = _bases(r_A, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r)
            problem, state = asymmetric(only(c), U, V)
            worst = torch.zeros(len(state.X), dtype=torch.float64)
            for t in range(5):
                X, Y = state = ScaledGD(eta=eta).step(problem, state, t)
                assert Y is not None
                worst = torch.maximum(worst, relative(X - U @ (U.mT @ X), X))
                worst = torch.maximum(worst, relative(Y - V @ (V.mT @ Y), Y))
            return within(c.valid, worst)

        return ratio, core_size(r_A, r)

    worst = over((case(*shape, eta) for shape in EXACT for eta in (0.1, 0.5, 1.0)), generator=generator)
    return _found(worst, 1e-12)


def _one_step(shape: tuple[int, int], generator: torch.Generator, metric: str, pinv: bool) -> tuple[Ratio, int]:
    """The metric after one step at eta = 1."""
    r_A, r = shape
    U, V = _bases(r_A + r, generator)
    U, V = U[:, :r_A], V[:, :r_A]
    solver = ScaledGDPinv(eta=1.0) if pinv else ScaledGD(eta=1.0)

    def ratio(p: Tensor) -> Tensor:
        c = core(p, r_A, r)
        problem, state = asymmetric(only(c), U, V)
        return within(c.valid, problem.metrics(solver.step(problem, state, 0))[metric])

    return ratio, core_size(r_A, r)


def theorem_3(generator: torch.Generator) -> Finding:
    """Exact-parametrised: X_1 Y_1^T = A."""
    return _found(over((_one_step(s, generator, "error", False) for s in EXACT), generator=generator), 1e-10)


def theorem_4(generator: torch.Generator) -> Finding:
    """Under-parametrised: weakly optimal, though not optimal."""
    worst = over((_one_step(s, generator, "weak", False) for s in UNDER), generator=generator)
    return _found(worst, 1e-10, "X_1 Y_1^T = P A with P the projection on range(A Omega): the randomised range finder")


def theorem_6(generator: torch.Generator) -> Finding:
    """Over-parametrised, pseudo-inverse."""
    return _found(over((_one_step(s, generator, "error", True) for s in OVER), generator=generator), 1e-10)


def definition_2(generator: torch.Generator) -> Finding:
    """The weak error does not see X -> X G, Y -> Y G^{-T} where X, Y are weakly optimal."""

    def case(r_A: int, r: int) -> tuple[Ratio, int]:
        U, V = _bases(r_A, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r)
            problem, state = asymmetric(only(c), U, V)
            X, Y = ScaledGD(eta=1.0).step(problem, state, 0)
            assert Y is not None
            G = c.W[c.valid][:, :r] + 3 * torch.eye(r, dtype=torch.float64)
            sigma = torch.linalg.svdvals(G)
            weak = problem.metrics(State(X @ G, Y @ torch.linalg.inv(G).mT))["weak"]
            return within(c.valid, torch.where(sigma[:, -1] * CONDITION > sigma[:, 0], weak, torch.nan))

        return ratio, core_size(r_A, r)

    worst = over((case(*shape) for shape in UNDER), generator=generator)
    return _found(worst, 1e-9, "strictly weaker than global optimality: Theorem 4's X_1, Y_1 satisfy it")


def lemma_13(generator: torch.Generator) -> Finding:
    """X* = U_1 Sigma_1^{1/2} G, Y* = V_1 Sigma_1^{1/2} G^{-T}."""

    def case(r_A: int, r: int) -> tuple[Ratio, int]:
        U, V = _bases(r_A, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r, kappa=1e4)
            G = c.W[:, :r]
            sigma = torch.linalg.svdvals(G)
            valid = sigma[:, -1] * CONDITION > sigma[:, 0]
            s, G = c.s[valid], G[valid]
            X = U[:, :r] @ (s[:, :r, None].sqrt() * G)
            Y = V[:, :r] @ (s[:, :r, None].sqrt() * torch.linalg.inv(G).mT)
            return within(valid, Asymmetric(U=U, V=V, s=s, rank=r).metrics(State(X, Y))["weak"])

        return ratio, core_size(r_A, r)

    return _found(over((case(*shape) for shape in (*UNDER, *EXACT)), generator=generator), 1e-11)


def corollary_1(generator: torch.Generator) -> Finding:
    """X_t Y_t^T = beta_t A exactly, with the scalar recursion of (32) from beta_1 = eta, whatever xi and kappa."""

    def case(r: int, eta: float) -> tuple[Ratio, int]:
        U, V = _bases(r, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r, r)
            problem, state = asymmetric(only(c), U, V)
            S, beta = torch.diag_embed(problem.s), eta
            worst = torch.zeros(len(S), dtype=torch.float64)
            for t in range(8):
                state = ScaledGD(eta=eta).step(problem, state, t)
                assert state.Y is not None
                core_t = (U.mT @ state.X) @ (V.mT @ state.Y).mT
                worst = torch.maximum(worst, frobenius(core_t - beta * S) / problem.norm)
                beta = ((1 - eta) * beta + eta) ** 2 / beta
            return within(c.valid, worst)

        return ratio, core_size(r, r)

    worst = over((case(r, eta) for r in (1, 2, 4) for eta in (0.1, 0.5, 0.9)), generator=generator)
    if not _scalar_phases():
        return _found(worst._replace(value=float("inf")), 1e-9)
    note = (
        "sharper than stated: X_t Y_t^T = beta_t A, beta_1 = eta, beta_{t+1} = ((1-eta) beta_t + eta)^2 / beta_t, "
        "so at eta = 1/2 the error does not depend on kappa or xi, and there is no first-step overshoot"
    )
    return _found(worst, 1e-9, note)


def _scalar_phases() -> bool:
    """Both phases of the statement, in the scalar to which the identity reduces them, for kappa up to 10."""
    for kappa in (1.0, 2.0, 5.0, 10.0):
        for norm in (1.0, 3.0):
            eta = 1 / (12 * kappa**3 * norm)
            beta = eta
            for _ in range(math.ceil(math.log(3 * kappa**2 * norm) / eta)):
                beta = ((1 - eta) * beta + eta) ** 2 / beta
            for t in range(5):
                if abs(beta - 1) * norm > max(4 / (3 * kappa**2) * 2.0 ** -(2.0**t), 1e-12):
                    return False
                beta = (beta + 1) ** 2 / (4 * beta)
    return True


CLAIMS = (
    Claim(
        id="Lemma 6",
        statement="X_t = U Phi_t and Y_t = V Psi_t for all t",
        quantity="relative residual over five steps",
        check=lemma_6,
    ),
    Claim(
        id="Theorem 3",
        statement="eta = 1, r = r_A: X_1 Y_1^T = A",
        quantity="||X_1 Y_1^T - A||_F",
        check=theorem_3,
    ),
    Claim(
        id="Corollary 1",
        statement="Both phases of Theorem 1 for X_t Y_t^T, with Phi_t Psi_t^T symmetric positive definite and (32)",
        quantity="||X_t Y_t^T - beta_t A||_F / ||A||_F over eight steps",
        check=corollary_1,
    ),
    Claim(
        id="Definition 2",
        statement="(X, Y) is weakly optimal to (4) if Y^T A^+ X = I_r",
        quantity="||Y^T A^+ X - I||_F after X -> X G, Y -> Y G^{-T}",
        check=definition_2,
    ),
    Claim(
        id="Lemma 13",
        statement="Every global optimum of (4) is weakly optimal",
        quantity="||Y*^T A^+ X* - I||_F",
        check=lemma_13,
    ),
    Claim(
        id="Theorem 4",
        statement="eta = 1, r < r_A: Y_1^T A^+ X_1 = I_r",
        quantity="||Y_1^T A^+ X_1 - I||_F",
        check=theorem_4,
    ),
    Claim(
        id="Theorem 6",
        statement="eta = 1, r > r_A, pseudo-inverse (35): X_1 Y_1^T = A",
        quantity="||X_1 Y_1^T - A||_F",
        check=theorem_6,
    ),
)

"""Appendix A: LoRA on a linear model, the conjecture on GD, the start without A, the factorisation."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.factorization.linalg import State, frobenius
from nora.factorization.loop import iterate
from nora.factorization.one_step import factorize
from nora.factorization.problems import Asymmetric, Problem, Symmetric, geometric, gradient
from nora.factorization.solvers import GD, AltGD
from nora.factorization.starts import nystrom, small
from nora.factorization.theory.core import Claim, Finding, Ratio, asymmetric, basis, core, core_size, over, symmetric


def lora_on_a_linear_model(generator: torch.Generator) -> Finding:
    """Loss up to a constant, and both gradients, of LoRA over whitened data against (4) with A = B - W_0."""
    m, n, r, N = 4, 3, 2, 7
    D = N**0.5 * basis(N, n, generator).mT  # D D^T / N = I
    sizes = [m * n, m * N, m * r, n * r, m * r, n * r]

    def ratio(p: Tensor) -> Tensor:
        W0, T, *factors = torch.split(p, sizes, dim=1)
        W0, T = W0.reshape(-1, m, n), T.reshape(-1, m, N)
        X, Y, X2, Y2 = (f.reshape(-1, d, r) for f, d in zip(factors, (m, n, m, n), strict=True))
        A = T @ D.mT / N - W0

        def lora(X: Tensor, Y: Tensor) -> Tensor:
            return frobenius((W0 + X @ Y.mT) @ D - T) ** 2 / (2 * N)

        def factorisation(X: Tensor, Y: Tensor) -> Tensor:
            return frobenius(X @ Y.mT - A) ** 2 / 2

        shift = (lora(X, Y) - factorisation(X, Y)) - (lora(X2, Y2) - factorisation(X2, Y2))
        scale = 1 + lora(X, Y) + lora(X2, Y2)
        G = ((W0 + X @ Y.mT) @ D - T) @ D.mT / N
        E = X @ Y.mT - A
        slopes = frobenius(G @ Y - E @ Y) + frobenius(G.mT @ X - E.mT @ X)
        return shift.abs() / scale + slopes / scale

    worst = over([(ratio, sum(sizes))], generator=generator)
    return worst.finding(limit=1e-12, note="B is the least-squares solution T D^T / N of the whitened data (D, T)")


def gd_from_nystrom(generator: torch.Generator) -> Finding:
    """Paired races to 1e-6 relative error: Nystrom against small, and against an unaligned start of the same norm."""
    wins, fair, total = 0, 0, 0
    for solver, problem in _races(generator):
        clean, tiny, same = _starts(problem, generator)
        counts = [
            iterate(problem, solver, begin, budget=1500, tolerance=1e-6, on="relative", every=5).iterations
            for begin in (clean, tiny, same)
        ]
        for a, b, c in zip(*counts, strict=True):
            wins, fair, total = wins + (a < b), fair + (a < c), total + 1
    return Finding(
        instances=total,
        searched=0,
        worst=0.0,
        limit=0.0,
        frequency=wins / total,
        note=f"against a small start (zeta = 1e-3); against an unaligned start of the same norm: {fair / total:.3f}",
    )


def _races(generator: torch.Generator) -> list[tuple[GD | AltGD, Problem]]:
    s = geometric(3, 5.0)
    sym = Symmetric.make(m=20, spectrum=s, rank=3, generator=generator)
    asym = Asymmetric.make(m=20, n=15, spectrum=s, rank=3, generator=generator)
    return [(GD(eta=0.2), sym), (GD(eta=0.2), asym), (AltGD(eta=0.2), asym)]


def _starts(problem: Problem, generator: torch.Generator, seeds: int = 64) -> tuple[State, State, State]:
    """Nystrom, small, and Gaussian starts scaled to the Nystrom starts' norms (all of it in X and, if any, Y)."""
    clean = [nystrom(problem, generator=generator, xi=0.1) for _ in range(seeds)]
    tiny = [small(problem, generator=generator, zeta=1e-3) for _ in range(seeds)]
    same = []
    for a, b in zip(clean, tiny, strict=True):
        scale = float(frobenius(a.X) / frobenius(b.X))
        same.append(State(scale * b.X, None if b.Y is None else torch.zeros_like(b.Y)))
    return _stack(clean), _stack(tiny), _stack(same)


def _stack(states: list[State]) -> State:
    Y = [s.Y for s in states if s.Y is not None]
    return State(torch.stack([s.X for s in states]), torch.stack(Y) if Y else None)


def start_without_A(generator: torch.Generator) -> Finding:
    """The gradient's start against A Omega."""

    def case(r_A: int, r: int) -> tuple[Ratio, int]:
        Q, V = basis(r_A + 3, r_A, generator), basis(r_A + 2, r_A, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r)
            sym, _ = symmetric(c, Q)
            asym, _ = asymmetric(c, Q, V)
            Omega = Q @ c.W
            from_gradient = Omega @ (Omega.mT @ Omega) - gradient(sym, State(Omega)).X
            size = frobenius(Omega) ** 3 + frobenius(Omega)
            first = frobenius(from_gradient - sym.apply(Omega)) / size
            Omega = V @ c.W
            other = -gradient(asym, State(torch.zeros(len(p), len(Q), r, dtype=torch.float64), Omega)).X
            return torch.maximum(first, frobenius(other - asym.apply(Omega)) / frobenius(Omega))

        return ratio, core_size(r_A, r)

    worst = over((case(*shape) for shape in ((2, 2), (3, 2), (2, 4))), generator=generator)
    return worst.finding(limit=1e-12)


def one_step_is_the_range_finder(generator: torch.Generator) -> Finding:
    """factorize against Q Q^T A with Q = qr(A Omega), the randomised range finder."""
    worst, count = 0.0, 0
    for rank, spectrum in ((3, geometric(8, 10.0)), (8, geometric(8, 1e8)), (10, geometric(8, 100.0))):
        for _ in range(350):
            A = Asymmetric.make(m=12, n=10, spectrum=spectrum, rank=1, generator=generator).dense()
            state = generator.get_state()
            Omega = torch.randn(10, rank, generator=generator, dtype=torch.float64)
            generator.set_state(state)
            X, Y = factorize(A, rank, generator=generator)
            # The left singular vectors with non-zero values span range(A Omega) whatever its rank.
            U, values, _ = torch.linalg.svd(A @ Omega, full_matrices=False)
            U = U[:, values > 1e-13 * values[0]]
            worst, count = max(worst, float(frobenius(X @ Y.mT - U @ (U.mT @ A)))), count + 1
    return Finding(
        instances=count,
        searched=0,
        worst=worst,
        limit=1e-10,
        note="so it is exact where rank(A) <= r and no better than the range finder elsewhere; its speed against SVDs "
        "is measured by `nora bench factorization`",
    )


CLAIMS = (
    Claim(
        id="Appendix A.2",
        statement="LoRA on a linear model with whitened data is (4) with A = B - W_0",
        quantity="relative difference of losses (up to a constant) and gradients",
        check=lora_on_a_linear_model,
    ),
    Claim(
        id="Appendix A.3",
        statement="Conjecture: GD and AltGD profit from the Nystrom start as well",
        quantity="none: a frequency of paired races won to 1e-6 relative error",
        check=gd_from_nystrom,
    ),
    Claim(
        id="Appendix A.4",
        statement="-G(Omega) + Omega Omega^T Omega = A Omega for (1), -G_X(0, Omega) = A Omega for (4)",
        quantity="relative difference",
        check=start_without_A,
    ),
    Claim(
        id="Appendix A.5",
        statement="One step of ScaledGD is a factorisation of A: X_1 Y_1^T = P A, P the projection on range(A Omega)",
        quantity="||X Y^T - Q Q^T A||_F",
        check=one_step_is_the_range_finder,
    ),
)

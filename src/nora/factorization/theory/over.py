"""Appendix B.4: symmetric, over-parametrised."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.factorization.solvers.scaled_gd_pinv import Solver
from nora.factorization.theory.claim import Claim, Finding
from nora.factorization.theory.instances import basis, core, core_size, only, relative, symmetric
from nora.factorization.theory.search import Ratio, over, within


def lemma_12(generator: torch.Generator) -> Finding:
    """No residual, and (27), over five steps of the pseudo-inverse solver."""

    def case(r_A: int, r: int, eta: float) -> tuple[Ratio, int]:
        Q = basis(r_A + r, r_A, generator)

        def ratio(p: Tensor) -> Tensor:
            c = core(p, r_A, r)
            problem, state = symmetric(only(c), Q)
            Phi = Q.mT @ state.X
            worst = torch.zeros(len(Phi), dtype=torch.float64)
            for t in range(5):
                state = Solver(eta=eta).step(problem, state, t)
                right = (1 - eta) * Phi + eta * problem.s[:, :, None] * torch.linalg.pinv(Phi).mT
                after = Q.mT @ state.X
                worst = torch.maximum(worst, relative(state.X - Q @ after, state.X))
                worst = torch.maximum(worst, relative(after - right, after, Phi))
                Phi = after
            return within(c.valid, worst)

        return ratio, core_size(r_A, r)

    shapes = ((1, 2), (2, 3), (3, 6))
    worst = over((case(*shape, eta) for shape in shapes for eta in (0.1, 0.5, 0.9)), generator=generator)
    return Finding(
        instances=worst.random,
        searched=worst.searched,
        worst=worst.value,
        limit=1e-9,
        note="rcond = 1e-10 on X^T X; wherever rank(Phi_t) = r_A, which (28) grants for eta <= 1",
    )


CLAIMS = (
    Claim(
        id="Lemma 12",
        statement="X_t = Q Phi_t and Phi_{t+1} = (1-eta) Phi_t + eta Sigma (Phi_t^+)^T",
        quantity="relative residual over five steps",
        check=lemma_12,
    ),
)

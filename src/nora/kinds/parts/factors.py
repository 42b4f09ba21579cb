"""A factorisation's problem, start and solver from its spec, and the proof that it starts where its formula says.

The proof's formulas are written out again, beside those of ``starts``: nothing that makes a start is called, so a start
that does something else, or draws from another stream, is told apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nora import streams
from nora.factorization import (
    Asymmetric,
    Problem,
    Staircase,
    State,
    Symmetric,
    geometric,
    plateau,
    solvers,
    starts,
)
from nora.factorization.solvers import Solver
from nora.files import Json

if TYPE_CHECKING:
    from nora.kinds.factorize import ProblemSpec, SolverSpec, StartSpec

_TOLERANCE = 1e-12


def build_problem(spec: ProblemSpec, seed: int) -> Symmetric | Asymmetric:
    """A with the prescribed spectrum under a basis drawn from the seed's own stream."""
    if spec.spectrum == "plateau":
        spectrum = plateau(spec.count, tail=tuple(spec.tail or ()))
    else:
        spectrum = geometric(spec.count, spec.kappa or 1.0)
    draw = streams.generator(seed, "problem")
    if spec.n is None:
        return Symmetric.make(m=spec.m, spectrum=spectrum, rank=spec.rank, generator=draw)
    return Asymmetric.make(m=spec.m, n=spec.n, spectrum=spectrum, rank=spec.rank, generator=draw)


def build_start(spec: StartSpec, problem: Problem, seed: int) -> State:
    """The start, drawn from the stream "init": the sketch's direction does not depend on its scale."""
    settings = {key: value for key in ("xi", "xi_n", "zeta") if (value := getattr(spec, key)) is not None}
    return starts.load(spec.name)(problem, generator=streams.generator(seed, "init"), **settings)


def build_solver(spec: SolverSpec) -> Solver:
    """The solver with its settings."""
    eta: float | Staircase | None = spec.eta
    if spec.eta_values is not None:
        eta = Staircase(values=tuple(spec.eta_values), length=spec.eta_length or 1)
    settings = {key: value for key in ("damping", "rcond") if (value := getattr(spec, key)) is not None}
    return solvers.load(spec.name)(eta=eta, **settings)  # type: ignore[call-arg]


def expected_start(spec: StartSpec, problem: Problem, seed: int) -> State:
    """X_0 [m, r] and, for the asymmetric problem, Y_0 [n, r] by the formula of the start's name; ValueError for a start
    that has none here."""
    draw = streams.generator(seed, "init")
    (m, n), rank = problem.shape, problem.rank

    def normal(rows: int, std: float) -> Tensor:
        return std * torch.randn((rows, rank), generator=draw, dtype=torch.float64)

    def sketched(Omega: Tensor) -> State:  # (3) and (5)
        return State(problem.apply(Omega), None if problem.symmetric else torch.zeros(n, rank, dtype=torch.float64))

    xi, zeta = spec.xi or 0.0, spec.zeta or 0.0
    match spec.name:
        case "small":  # Section 2.1
            X = normal(m, zeta)
            return State(X, None if problem.symmetric else normal(n, zeta))
        case "nystrom" | "nystrom_gradient":  # (3), (5); what Appendix A.4 reads off one gradient is A Omega too
            return sketched(normal(n, xi))
        case "nystrom_perturbed":  # Appendix E.1
            clean = sketched(normal(n, xi))
            return State(clean.X + normal(m, spec.xi_n or 0.0), clean.Y)
        case "nystrom_stiefel":  # Section 2.2; the Q factor with a positive diagonal of R is uniform
            Q, R = torch.linalg.qr(normal(n, 1.0))
            return sketched(xi * n**0.5 * Q * torch.diagonal(R).sign())
        case "altgd":  # Ward and Kolda, Section 3.1, with sigma_1(A) = 1
            return State(problem.apply(normal(n, zeta)), normal(n, zeta))
        case _:
            raise ValueError(f"start {spec.name}: no formula to prove it by, required one in kinds/parts/factors.py")


def prove_start(spec: StartSpec, problem: Problem, state: State, seed: int) -> dict[str, Json]:
    """Whether what the solver is given equals the start's formula on this problem, and by how much it differs."""
    expected = expected_start(spec, problem, seed)
    pairs = [(state.X, expected.X)]
    if expected.Y is not None:
        pairs.append((torch.zeros_like(expected.Y) if state.Y is None else state.Y, expected.Y))
    difference = max(float(torch.linalg.norm(given - wanted)) for given, wanted in pairs)
    relative = difference / float(torch.linalg.norm(expected.X))
    problems = [] if relative <= _TOLERANCE else [f"the start differs from {spec.name}'s formula by {relative:.2e}"]
    return {
        "init": spec.name, "passed": not problems, "problems": problems, "modules": [], "output_difference": relative,
    }  # fmt: skip

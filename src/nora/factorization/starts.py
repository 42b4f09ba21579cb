"""Starts: where the iteration begins. One function ``name(problem, *, generator, **settings) -> State`` each.

A start draws every random number from the generator it is given, and nothing else in the floor draws any.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from nora.factorization.linalg import State, gaussian, pick, require_positive, stiefel
from nora.factorization.problems import Problem, gradient


def names() -> list[str]:
    """The public functions of this file that take a problem."""
    return sorted(_starts())


def load(name: str) -> Callable[..., State]:
    """The start of that name; ValueError where there is none."""
    return pick(_starts(), name, "start")


def _starts() -> dict[str, Callable[..., State]]:
    found = inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    return {name: f for name, f in found if name[0] != "_" and "generator" in inspect.signature(f).parameters
            and f.__module__ == __name__}  # fmt: skip


def nystrom(problem: Problem, *, generator: torch.Generator, xi: float = 0.1) -> State:
    """X_0 = A Omega with [Omega]_ij ~ N(0, xi^2) (3); for the asymmetric problem Y_0 = 0 (5).

    The Nystrom sketch of A; with one generator state, Omega's direction does not depend on xi."""
    require_positive(xi, "xi")
    Omega = gaussian(
        problem.shape[1], problem.rank, generator=generator, std=xi, like=problem.like, name="the Nystrom start"
    )
    return _from_sketch(problem, Omega)


def _from_sketch(problem: Problem, Omega: Tensor) -> State:
    """(3) or (5) for a given Omega [n, r]."""
    X = problem.apply(Omega)
    if problem.symmetric:
        return State(X)
    return State(X, X.new_zeros(problem.shape[1], problem.rank))


def nystrom_gradient(problem: Problem, *, generator: torch.Generator, xi: float = 0.1) -> State:
    """The Nystrom start without access to A: from one gradient (Appendix A.4).

    Symmetric: X_0 = -G(Omega) + Omega Omega^T Omega. Asymmetric: X_0 = -G_X(0, Omega), Y_0 = 0. Both are A Omega."""
    require_positive(xi, "xi")
    m, n = problem.shape
    name = "the gradient start"
    Omega = gaussian(n, problem.rank, generator=generator, std=xi, like=problem.like, name=name)
    if problem.symmetric:
        return State(Omega @ (Omega.mT @ Omega) - gradient(problem, State(Omega)).X)
    zero = State(Omega.new_zeros(m, problem.rank), Omega)
    return State(-gradient(problem, zero).X, torch.zeros_like(Omega))


def nystrom_perturbed(problem: Problem, *, generator: torch.Generator, xi: float = 0.1, xi_n: float = 1e-6) -> State:
    """X_0 = A Omega + N with [N]_ij ~ N(0, xi_n^2): the dotted curves of Figures 1(b) and 4(b).

    The noise puts a little of X_0 outside the column space of A, where it decays by 1 - eta a step only."""
    require_positive(xi_n, "xi_n")
    clean = nystrom(problem, generator=generator, xi=xi)
    noise = gaussian(*clean.X.shape, generator=generator, std=xi_n, like=problem.like, name="the perturbed start")
    return State(clean.X + noise, clean.Y)


def nystrom_stiefel(problem: Problem, *, generator: torch.Generator, xi: float = 0.1) -> State:
    """X_0 = A Omega with Omega from the Stiefel manifold, which Section 2.2 names as a valid choice too.

    Omega = xi sqrt(n) U, U uniform on St(n, r): the entries' variance is xi^2, as for the Gaussian sketch."""
    require_positive(xi, "xi")
    name = "the Stiefel start"
    Omega = stiefel(problem.shape[1], problem.rank, generator=generator, std=xi, like=problem.like, name=name)
    return _from_sketch(problem, Omega)


def small(problem: Problem, *, generator: torch.Generator, zeta: float = 1e-3) -> State:
    """X_0 (and Y_0) with entries N(0, zeta^2), zeta small: the usual start of the literature.

    [X_0]_ij, [Y_0]_ij ~ N(0, zeta^2) (Section 2.1)."""
    require_positive(zeta, "zeta")
    m, n = problem.shape
    X = gaussian(m, problem.rank, generator=generator, std=zeta, like=problem.like, name="the small start")
    if problem.symmetric:
        return State(X)
    return State(X, gaussian(n, problem.rank, generator=generator, std=zeta, like=problem.like, name="the small start"))


def altgd(problem: Problem, *, generator: torch.Generator, sigma_1: float = 1.0, zeta: float = 1e-2) -> State:
    """Ward and Kolda's start for AltGD (asymmetric only): a sketch of A for X_0 and a small Gaussian for Y_0.

    X_0 = A Omega_1 / sigma_1(A), Y_0 = sigma_1(A) Omega_2, entries of both Omegas N(0, zeta^2) (Section 3.1).

    Unlike (5) it needs sigma_1(A) and a small zeta, and Y_0 has a part outside A's row space.
    """
    if problem.symmetric:
        raise ValueError(
            "start: given altgd with the symmetric problem, required the asymmetric one; use nystrom or small"
        )
    require_positive(zeta, "zeta")
    require_positive(sigma_1, "sigma_1")
    n, name = problem.shape[1], "the AltGD start"
    Omega_1 = gaussian(n, problem.rank, generator=generator, std=zeta, like=problem.like, name=name)
    Omega_2 = gaussian(n, problem.rank, generator=generator, std=zeta, like=problem.like, name=name)
    return State(problem.apply(Omega_1) / sigma_1, sigma_1 * Omega_2)

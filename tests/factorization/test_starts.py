"""Every start equals its formula, written out with the same draws; and AltGD its Gauss-Seidel order."""

import pytest
import torch

from nora.factorization import Asymmetric, State, Symmetric, geometric, solvers, starts
from nora.streams import generator

SYM = Symmetric.make(m=30, spectrum=geometric(4, 5.0), rank=3, generator=generator(0, "basis"))
ASYM = Asymmetric.make(m=30, n=20, spectrum=geometric(4, 5.0), rank=3, generator=generator(0, "basis"))


def draws(*shapes):
    g = generator(7, "init")
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def start(name, problem, **settings):
    return starts.load(name)(problem, generator=generator(7, "init"), **settings)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["nystrom", "nystrom_gradient"])
def test_nystrom_and_its_gradient_form(name):
    (Omega,) = draws((30, 3))
    close(start(name, SYM, xi=0.3).X, SYM.dense() @ (0.3 * Omega))
    (Omega,) = draws((20, 3))
    X, Y = start(name, ASYM, xi=0.3)
    close(X, ASYM.dense() @ (0.3 * Omega))
    assert torch.equal(Y, torch.zeros(20, 3, dtype=torch.float64))


def test_small():
    first, second = draws((30, 3), (20, 3))
    X, Y = start("small", ASYM, zeta=1e-4)
    close(X, 1e-4 * first)
    close(Y, 1e-4 * second)
    assert start("small", SYM).Y is None


def test_perturbed():
    Omega, noise = draws((30, 3), (30, 3))
    close(start("nystrom_perturbed", SYM, xi=0.5, xi_n=1e-3).X, SYM.dense() @ (0.5 * Omega) + 1e-3 * noise)


def test_altgd_start():
    first, second = draws((20, 3), (20, 3))
    X, Y = start("altgd", ASYM, sigma_1=2.0, zeta=0.1)
    close(X, ASYM.dense() @ (0.1 * first) / 2)
    close(Y, 2 * 0.1 * second)


def test_stiefel_sketch_is_orthogonal_with_the_gaussian_scale():
    from nora.factorization.linalg import stiefel

    Omega = stiefel(30, 3, generator=generator(7, "init"), std=0.2, like=SYM.Q, name="test")
    close(Omega.mT @ Omega, 0.2**2 * 30 * torch.eye(3, dtype=torch.float64))
    close(start("nystrom_stiefel", SYM, xi=0.2).X, SYM.dense() @ Omega)
    # Uniform on the manifold: no column has a preferred sign.
    signs = [stiefel(5, 1, generator=generator(i, "s"), std=1.0, like=SYM.Q, name="t")[0, 0] > 0 for i in range(200)]
    assert 60 < sum(map(bool, signs)) < 140


def test_altgd_uses_the_new_x_and_gd_the_old():
    X, Y = start("altgd", ASYM)
    A, eta = ASYM.dense(), 0.1
    X1 = X - eta * (X @ Y.mT - A) @ Y
    close(solvers.load("altgd")(eta=eta).step(ASYM, State(X, Y), 0).Y, Y - eta * (X1 @ Y.mT - A).mT @ X1)
    close(solvers.load("gd")(eta=eta).step(ASYM, State(X, Y), 0).Y, Y - eta * (X @ Y.mT - A).mT @ X)
    close(solvers.load("gd")(eta=eta).step(ASYM, State(X, Y), 0).X, X1)


@pytest.mark.parametrize("name", ["scaled_gd", "scaled_gd_pinv"])
def test_scaled_steps_read_the_old_pair_and_the_first_leaves_x(name):
    """Equation (6): Jacobi order, X_1 = X_0."""
    X, Y = start("altgd", ASYM)
    E, solver = X @ Y.mT - ASYM.dense(), solvers.load(name)(eta=0.4)
    Y1 = Y - 0.4 * E.mT @ X @ torch.linalg.inv(X.mT @ X)
    first, later = (solver.step(ASYM, State(X, Y), t) for t in (0, 1))
    assert torch.equal(first.X, X)
    for found, wanted in ((first.Y, Y1), (later.Y, Y1), (later.X, X - 0.4 * E @ Y @ torch.linalg.inv(Y.mT @ Y))):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_damped_step_against_the_formula():
    X, Y = start("altgd", ASYM)
    A, E = ASYM.dense(), X @ Y.mT - ASYM.dense()
    after = solvers.load("scaled_gd_lambda")(eta=0.5, damping=0.1).step(ASYM, State(X, Y), 0)
    damp = 0.1 * torch.eye(3, dtype=torch.float64)
    close(after.X, X - 0.5 * E @ Y @ torch.linalg.inv(Y.mT @ Y + damp))
    close(after.Y, Y - 0.5 * (X @ Y.mT - A).mT @ X @ torch.linalg.inv(X.mT @ X + damp))

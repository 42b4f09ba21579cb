"""factorize is the randomised range finder, exact at any conditioning and where rank > rank(A)."""

import numpy as np
import pytest
import torch

from nora.factorization import Asymmetric, factorize, geometric, iterate, solvers, starts
from nora.streams import generator

KAPPA_100 = geometric(10, 100.0)


def matrix(m=120, n=90, spectrum=KAPPA_100, dtype=torch.float64):
    return Asymmetric.make(m=m, n=n, spectrum=spectrum, rank=1, generator=generator(0, "basis"), dtype=dtype).dense()


def range_finder(A, rank, seed=0, q=0):
    """Halko, Martinsson and Tropp (2011), Algorithm 4.3, in numpy, from the same Omega."""
    Omega = torch.randn(A.shape[1], rank, generator=generator(seed, "init"), dtype=torch.float64).numpy()
    A = A.double().numpy()
    Y = A @ Omega
    for _ in range(q):
        Y = A @ (A.T @ Y)
    Q, _ = np.linalg.qr(Y)
    return torch.from_numpy(Q @ (Q.T @ A))


@pytest.mark.parametrize("xi", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("rank", [3, 10])
def test_equals_the_range_finder(xi, rank):
    A = matrix(spectrum=geometric(80, 50.0))
    X, Y = factorize(A, rank, generator=generator(0, "init"), xi=xi)
    assert float((X @ Y.mT - range_finder(A, rank)).abs().max()) <= 1e-10


def test_x_is_the_sketch_and_the_pair_is_one_scaled_gd_step():
    problem = Asymmetric.make(m=60, n=50, spectrum=geometric(8, 10.0), rank=5, generator=generator(0, "basis"))
    start = starts.load("nystrom")(problem, generator=generator(4, "init"), xi=0.3)
    step = iterate(problem, solvers.load("scaled_gd")(eta=1.0), start, budget=1).state
    X, Y = factorize(problem.dense(), 5, generator=generator(4, "init"), xi=0.3)
    torch.testing.assert_close(X, step.X, rtol=0, atol=1e-12)
    torch.testing.assert_close(Y, step.Y, rtol=1e-9, atol=1e-12)


def test_power_iterations_equal_the_subspace_iteration():
    A = matrix(spectrum=geometric(80, 50.0))
    X, Y = factorize(A, 6, generator=generator(0, "init"), power_iterations=2)
    assert float((X @ Y.mT - range_finder(A, 6, q=2)).abs().max()) <= 1e-9


def test_power_iterations_keep_the_small_directions():
    """kappa = 1e8: powers of A A^T that are not made orthonormal in between are of condition 1e40 and keep none."""
    A = matrix(spectrum=geometric(10, 1e8))
    X, Y = factorize(A, 10, generator=generator(0, "init"), power_iterations=2)
    assert float(torch.linalg.matrix_norm(X @ Y.mT - A)) <= 1e-13


@pytest.mark.parametrize("kappa", [1e2, 1e8, 1e12])
@pytest.mark.parametrize("rank", [10, 17])
def test_exact_at_any_conditioning(kappa, rank):
    A = matrix(spectrum=geometric(10, kappa))
    X, Y = factorize(A, rank, generator=generator(0, "init"))
    assert float(torch.linalg.matrix_norm(X @ Y.mT - A)) <= 1e-13


@pytest.mark.parametrize("rank", [50, 64])
def test_float32_keeps_every_direction_of_a_large_matrix(rank):
    A = matrix(1000, 800, geometric(50, 100.0), torch.float32)
    X, Y = factorize(A, rank, generator=generator(0, "init"))
    assert float(torch.linalg.matrix_norm(X @ Y.mT - A) / torch.linalg.matrix_norm(A)) < 2e-5


def test_small_values_survive_where_normal_equations_lose_them():
    """kappa = 1e8: the direction of size 1e-8 is recovered; X^T X, of condition 1e16, loses it."""
    A = matrix(spectrum=geometric(10, 1e8))
    X, Y = factorize(A, 10, generator=generator(0, "init"))
    normal = X @ torch.linalg.solve(X.mT @ X, X.mT @ A)
    ours, theirs = (float(torch.linalg.matrix_norm(M - A)) for M in (X @ Y.mT, normal))
    assert ours < 1e-13 < 1e-12 < theirs


def test_oversampling_reaches_the_optimum():
    A = matrix(spectrum=geometric(80, 1e3))
    values = torch.linalg.svdvals(A)
    best = float(values[8:].norm())

    def error(**settings):
        X, Y = factorize(A, 8, generator=generator(0, "init"), **settings)
        assert X.shape == (120, 8) and Y.shape == (90, 8)
        return float(torch.linalg.matrix_norm(X @ Y.mT - A))

    plain, sharp = error(), error(oversampling=8, power_iterations=2)
    assert best <= sharp < 1.01 * best < plain


def test_zero_matrix_and_full_rank():
    X, Y = factorize(torch.zeros(6, 5), 3, generator=generator(0, "init"))
    assert torch.equal(X @ Y.mT, torch.zeros(6, 5))
    A = torch.randn(6, 5, generator=generator(0, "A"), dtype=torch.float64)
    X, Y = factorize(A, 5, generator=generator(0, "init"))
    torch.testing.assert_close(X @ Y.mT, A, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rank", [4, 10, 12])
def test_sparse_and_operator_inputs_equal_dense(rank):
    A = matrix()
    A[A.abs() < A.abs().median()] = 0.0

    class Wrapped:
        shape, dtype, device = A.shape, A.dtype, A.device

        def matmul(self, M):
            return A @ M

        def rmatmul(self, M):
            return A.mT @ M

    dense = factorize(A, rank, generator=generator(0, "init"))
    for other in (A.to_sparse(), A.to_sparse().coalesce().t().coalesce().t(), Wrapped()):
        X, Y = factorize(other, rank, generator=generator(0, "init"))
        torch.testing.assert_close(X @ Y.mT, dense[0] @ dense[1].mT, rtol=0, atol=1e-12)


def test_a_dense_matrix_is_used_as_it_is(monkeypatch):
    """Converted to sparse it gives the same numbers ten times slower."""
    monkeypatch.setattr(torch.Tensor, "to_sparse", lambda *a: pytest.fail("dense A converted"))
    factorize(matrix(), 5, generator=generator(0, "init"))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_csr():
    A = matrix()
    X, Y = factorize(A.to_sparse_csr(), 10, generator=generator(0, "init"))
    torch.testing.assert_close(X @ Y.mT, A, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_lower_precision(dtype, bound):
    work = torch.float32
    A = matrix().to(dtype)
    X, Y = factorize(A, 10, generator=generator(0, "init"))
    assert X.dtype == Y.dtype == work
    assert float(torch.linalg.matrix_norm(X @ Y.mT - A.to(work)) / torch.linalg.matrix_norm(A.to(work))) < bound

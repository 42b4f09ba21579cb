"""The loop: stop reasons, batching, metrics against independent references."""

import numpy as np
import pytest
import torch

from nora.factorization import (
    Asymmetric,
    DenseAsymmetric,
    DenseSymmetric,
    Staircase,
    State,
    StopReason,
    Symmetric,
    iterate,
    plateau,
    solvers,
    starts,
)
from nora.streams import generator

SPECTRUM = (1.0, 0.7, 0.2)


def symmetric(rank=3):
    return Symmetric.make(m=30, spectrum=SPECTRUM, rank=rank, generator=generator(1, "basis"))


def asymmetric(rank=3):
    return Asymmetric.make(m=30, n=20, spectrum=SPECTRUM, rank=rank, generator=generator(1, "basis"))


def nystrom(problem, seed=0, **settings):
    return starts.load("nystrom")(problem, generator=generator(seed, "init"), **settings)


def test_stop_reasons():
    p = symmetric()
    scaled, gd = solvers.load("scaled_gd")(eta=0.5), solvers.load("gd")
    done = iterate(p, scaled, nystrom(p), budget=60, tolerance=1e-12)
    assert done.reasons == (StopReason.CONVERGED,) and done.iterations[0] < 25
    assert done.first_below("error", 1e-12) == done.iterations[0]
    assert iterate(p, scaled, nystrom(p), budget=2, tolerance=1e-12).reasons == (StopReason.BUDGET,)
    assert iterate(p, gd(eta=9.0), nystrom(p), budget=200).reasons == (StopReason.DIVERGED,)
    blown = iterate(p, gd(eta=9.0), nystrom(p), budget=200, divergence=float("inf"))
    assert blown.reasons == (StopReason.NON_FINITE,)
    never = iterate(p, scaled, nystrom(p), budget=0)
    assert never.reasons == (StopReason.BUDGET,) and never.steps == (0,)


def test_a_batch_is_its_seeds_and_stops_each_by_itself():
    p = symmetric()
    solver = solvers.load("scaled_gd")(eta=0.5)
    one = [nystrom(p, seed, xi=xi) for seed, xi in enumerate((1.0, 1e-3, 30.0))]
    batch = iterate(p, solver, State(torch.stack([s.X for s in one])), budget=60, tolerance=1e-11)
    assert len(set(batch.iterations)) > 1
    for seed, start in enumerate(one):
        alone = iterate(p, solver, start, budget=60, tolerance=1e-11)
        assert alone.iterations[0] == batch.iterations[seed]
        torch.testing.assert_close(batch.state.X[seed], alone.state.X, rtol=1e-9, atol=1e-12)
        values = torch.tensor([v for _, v in batch.curve("error", seed)])
        torch.testing.assert_close(values, torch.tensor([v for _, v in alone.curve("error")]), rtol=1e-6, atol=1e-13)


def test_repeats_bit_for_bit():
    p = symmetric()
    first, second = (iterate(p, solvers.load("scaled_gd")(eta=0.5), nystrom(p), budget=30) for _ in range(2))
    assert torch.equal(first.metrics["error"], second.metrics["error"])


def test_every_kth_iteration_is_the_same_curve_thinned():
    p = symmetric()
    full = dict(iterate(p, solvers.load("gd")(eta=0.1), nystrom(p), budget=25).curve("error"))
    thin = dict(iterate(p, solvers.load("gd")(eta=0.1), nystrom(p), budget=25, every=10).curve("error"))
    assert list(thin) == [0, 10, 20, 25]
    assert all(thin[t] == full[t] for t in thin)


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1.0])
def test_symmetric_error_equals_the_joint_basis_and_the_dense_one(noise):
    p = symmetric(rank=2)
    X = nystrom(p).X + noise * torch.randn(30, 2, generator=generator(5, "noise"), dtype=torch.float64)
    found = p.metrics(State(X))
    _, R = np.linalg.qr(np.hstack([X.numpy(), p.Q.numpy()]))
    RX, RQ = R[:, :2], R[:, 2:]
    joint = np.linalg.norm(RX @ RX.T - RQ @ np.diag(SPECTRUM) @ RQ.T)
    assert float(found["error"]) == pytest.approx(joint, rel=1e-12)
    dense = np.linalg.norm(X.numpy() @ X.numpy().T - p.dense().numpy())
    assert float(found["error"]) == pytest.approx(dense, rel=1e-12)
    assert float(found["loss"]) == pytest.approx(dense**2 / 2)
    weak = np.linalg.norm(X.numpy().T @ np.linalg.pinv(p.dense().numpy(), rcond=1e-10) @ X.numpy() - np.eye(2))
    assert float(found["weak"]) == pytest.approx(weak, rel=1e-9)


def test_asymmetric_metrics_against_numpy():
    p = asymmetric(rank=2)
    g = generator(5, "noise")
    X, Y = (torch.randn(d, 2, generator=g, dtype=torch.float64) for d in p.shape)
    A = p.dense().numpy()
    found = p.metrics(State(X, Y))
    assert float(found["error"]) == pytest.approx(np.linalg.norm(X.numpy() @ Y.numpy().T - A), rel=1e-12)
    weak = np.linalg.norm(Y.numpy().T @ np.linalg.pinv(A, rcond=1e-10) @ X.numpy() - np.eye(2))
    assert float(found["weak"]) == pytest.approx(weak, rel=1e-9)


def test_error_is_read_down_to_rounding():
    """A known distance of 1e-13 is read as such; the dense difference cannot see it that well at kappa = 1e8."""
    p = Symmetric.make(m=200, spectrum=(1.0, 1e-8), rank=2, generator=generator(1, "basis"))
    X = p.Q * p.s.sqrt()
    X[:, 1] *= 1 + 5e-6
    assert float(p.metrics(State(X))["error"]) == pytest.approx(1e-8 * ((1 + 5e-6) ** 2 - 1), rel=1e-6)


def test_dense_and_factored_runs_agree():
    for p, dense in [(symmetric(), DenseSymmetric), (asymmetric(), DenseAsymmetric)]:
        solver = solvers.load("scaled_gd")(eta=0.5)
        start = nystrom(p)
        ours = iterate(p, solver, start, budget=15)
        other = iterate(dense(A=p.dense(), rank=3), solver, start, budget=15)
        torch.testing.assert_close(ours.metrics["error"], other.metrics["error"], rtol=1e-6, atol=1e-12)


def test_staircase():
    stairs = Staircase(values=(0.5, 0.1), length=3)
    assert [stairs(t) for t in (0, 2, 3, 5, 6, 99)] == [0.5, 0.5, 0.1, 0.1, 0.1, 0.1]
    p = symmetric(rank=2)
    a = iterate(p, solvers.load("scaled_gd")(eta=Staircase(values=(0.5, 0.1), length=3)), nystrom(p), budget=6)
    b = iterate(p, solvers.load("scaled_gd")(eta=0.5), nystrom(p), budget=3)
    c = iterate(p, solvers.load("scaled_gd")(eta=0.1), b.state, budget=3)
    assert torch.equal(a.state.X, c.state.X)


def test_one_product_with_A_per_iteration():
    """ScaledGD multiplies by A once a step (once by A^T, then once by each, for the asymmetric problem)."""
    calls = []

    class Counted(DenseSymmetric):
        def apply(self, M):
            calls.append(M.shape)
            return self.A @ M

    p = Counted(A=symmetric().dense(), rank=3)
    start = nystrom(p)
    for name in ("gd", "scaled_gd", "scaled_gd_pinv", "scaled_gd_lambda"):
        calls.clear()
        iterate(p, solvers.load(name)(eta=0.1), start, budget=7)
        assert len(calls) == 7, name


def test_large_factored_problem_fits_into_memory():
    """m = 20,000, r = 64: A would be 3.2 GB, its factors are 10 MB."""
    p = Symmetric.make(m=20_000, spectrum=plateau(64, step=0.01), rank=64, generator=generator(0, "basis"))
    trace = iterate(p, solvers.load("scaled_gd")(eta=0.5), nystrom(p), budget=12, every=6)
    assert dict(trace.curve("error"))[12] < 1.0

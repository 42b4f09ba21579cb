"""The numbers of Figures 1 and 4 at the paper's own size, m = 1000 (Appendix E.1), on three seeds."""

import pytest
import torch

from nora.factorization import Staircase, State, Symmetric, iterate, plateau, solvers, starts
from nora.streams import generator

EP, UP = plateau(19, tail=(0.01,)), plateau(37, tail=(0.05, 0.025, 0.01))
SEEDS = range(3)


def problem(spectrum, rank):
    return Symmetric.make(m=1000, spectrum=spectrum, rank=rank, generator=generator(0, "basis"))


def run(p, solver, start, *, budget, every=1, **settings):
    eta, solver_settings = settings.pop("eta", 0.5), settings.pop("solver_settings", {})
    drawn = [starts.load(start)(p, generator=generator(seed, "init"), **settings) for seed in SEEDS]
    state = State(torch.stack([s.X for s in drawn]))
    return iterate(p, solvers.load(solver)(eta=eta, **solver_settings), state, budget=budget, every=every)


def at(trace, t, metric="error"):
    return trace.metrics[metric][trace.steps.index(t)]


def test_spectra():
    assert len(EP) == 20 and EP[18] == 0.82 and EP[19] == 0.01
    assert len(UP) == 40 and UP[36] == 0.64
    assert float(problem(EP, 20).norm) == pytest.approx(3.974, abs=5e-4)
    assert float(problem(UP, 20).best_error()) == pytest.approx(2.976, abs=5e-4)


@pytest.mark.parametrize(("xi", "by"), [(1e-3, 22), (1e-2, 19), (0.1, 17), (1.0, 15), (10.0, 15)])
def test_figure_1_nystrom_is_quadratic_whatever_xi(xi, by):
    trace = run(problem(EP, 20), "scaled_gd", "nystrom", xi=xi, budget=by)
    assert (at(trace, by) < 1e-13).all()
    for seed in SEEDS:
        values = [v for _, v in trace.curve("error", seed)]
        # Overshoot, a quarter a step, then the digits double: E+ = E B^-1 E / 4, so e+ <= e^2 / (4 sigma_r(B)).
        tail = [(a, b) for a, b in zip(values, values[1:], strict=False) if 1e-7 < a < 5e-3]
        assert tail and all(b <= 1.01 * a * a / (4 * (0.01 - a)) for a, b in tail)


def test_figure_1a_small_start_is_linear():
    trace = run(problem(EP, 20), "scaled_gd", "small", budget=60)
    expected = {5: 4e-2, 10: 1.8e-4, 15: 5.7e-6, 20: 1.8e-7, 30: 1.7e-10}
    for t, value in expected.items():
        if t >= 10:
            torch.testing.assert_close(at(trace, t), torch.full((3,), value).double(), rtol=0.05, atol=0)
    assert (at(trace, 60) < 1e-13).all()


@pytest.mark.slow
def test_figure_1a_gd_misses_the_smallest_eigenvalue():
    trace = run(problem(EP, 20), "gd", "small", eta=0.01, budget=3000, every=100)
    assert (at(trace, 300) > 3.9).all()
    torch.testing.assert_close(at(trace, 1500), torch.full((3,), 0.01).double(), rtol=0.05, atol=0)
    assert (at(trace, 3000) > 0.009).all()


@pytest.mark.parametrize("xi_n", [1e-8, 1e-6, 1e-4])
def test_figure_1b_noise_makes_the_tail_linear(xi_n):
    trace = run(problem(EP, 20), "scaled_gd", "nystrom_perturbed", xi_n=xi_n, budget=30)
    late = at(trace, 20)
    torch.testing.assert_close(late, torch.full((3,), 0.045 * xi_n * 2.0**-8).double(), rtol=0.1, atol=0)
    torch.testing.assert_close(at(trace, 21) / late, torch.full((3,), 0.5).double(), rtol=1e-3, atol=0)


def test_figure_1c_order_of_the_steps():
    p = problem(UP, 20)
    weak = {eta: at(run(p, "scaled_gd", "nystrom", eta=eta, budget=60), 60, "weak") for eta in (0.5, 0.1, 0.01, 1.0)}
    first = at(run(p, "scaled_gd", "nystrom", budget=0), 0, "weak")
    assert (weak[0.5] < weak[0.1]).all() and (weak[0.1] < weak[0.01]).all() and (weak[0.01] < first).all()
    assert (weak[0.5] < 1e-3).all()
    assert (weak[1.0] > 1.0).all()  # eta = 1 does not converge (Theorem 2 asks for eta < 1)
    stairs = run(p, "scaled_gd", "nystrom", eta=Staircase(values=(0.1, 0.01), length=30), budget=60)
    assert (at(stairs, 60, "weak") < weak[0.01]).all()


def test_figure_4a():
    p = problem(EP, 60)
    ours = run(p, "scaled_gd_pinv", "nystrom", budget=12)
    assert (at(ours, 10) < 1e-13).all()
    damped = run(p, "scaled_gd_lambda", "small", budget=60, solver_settings={"damping": 0.01})
    torch.testing.assert_close(at(damped, 60), torch.full((3,), 9e-4).double(), rtol=0.1, atol=0)
    aligned = run(p, "scaled_gd_lambda", "nystrom", budget=32, solver_settings={"damping": 0.01})
    assert (at(aligned, 32) < 1e-9).all()


@pytest.mark.parametrize("rcond", [1e-15, 1e-12, 1e-10, 1e-8])
def test_figure_4_clean_runs_do_not_depend_on_rcond(rcond):
    p = problem(EP, 60)
    a, b = (run(p, "scaled_gd_pinv", "nystrom", budget=9, solver_settings={"rcond": r}) for r in (rcond, 1e-10))
    torch.testing.assert_close(a.metrics["error"], b.metrics["error"], rtol=1e-4, atol=1e-13)


def test_figure_4b_noise():
    trace = run(problem(EP, 60), "scaled_gd_pinv", "nystrom_perturbed", xi_n=1e-8, budget=60)
    torch.testing.assert_close(at(trace, 12) / at(trace, 11), torch.full((3,), 0.5).double(), rtol=1e-2, atol=0)
    assert (at(trace, 60) < 1e-11).all() and (at(trace, 60) > 1e-13).all()

"""Table 1 measured: counts, fits and their intervals."""

import math

import numpy as np
import pytest
import scipy.stats

from nora.factorization.rates import METHODS, Count, Method, count, fit, student_t

FAST = [m for m in METHODS if m.solver in ("scaled_gd", "scaled_gd_pinv") and m.regime != "UP"]


@pytest.fixture(scope="module")
def rows():
    return count(FAST, kappas=(2.0, 10.0, 100.0), m=40, seeds=3, budget=200)


def slopes(rows, against, kappa=None):
    return {f.method: f for f in fit(rows) if f.against == against and f.kappa == kappa}


def test_one_step_is_one_step_at_every_kappa_and_epsilon(rows):
    for setting in ("asym EP scaled_gd nystrom", "asym OP scaled_gd_pinv nystrom"):
        assert {c.iterations for c in rows if c.method == setting} == {1}
        assert slopes(rows, "log kappa")[setting].slope == 0.0


def test_linear_and_quadratic_rates_are_told_apart(rows):
    """eta = 1/2: a linear rate costs log2(10) = 3.3 iterations a digit, a quadratic one 1 per doubling of digits."""
    linear, double = (slopes(rows, against, 10.0) for against in ("log(1/eps)", "loglog(1/eps)"))
    small = linear["asym EP scaled_gd small"]
    assert small.low <= math.log2(10) <= small.high + 0.05 and small.r2 > 0.99
    quadratic = double["sym EP scaled_gd nystrom"]
    assert 0.7 < quadratic.slope < 1.3 and quadratic.r2 > linear["sym EP scaled_gd nystrom"].r2
    assert abs(slopes(rows, "log kappa")["sym EP scaled_gd small"].slope) < 0.01


def test_kappa_slope_of_gradient_descent():
    gd = [m for m in METHODS if m.solver == "gd" and m.regime == "EP"]
    measured = slopes(count(gd, kappas=(2.0, 4.0, 8.0), m=40, seeds=2, budget=4000), "log kappa")
    for found in measured.values():
        assert 0.8 < found.low <= found.slope <= found.high < 1.2  # below the printed exponents: agreement


def test_over_the_budget_is_said_not_averaged():
    gd = [m for m in METHODS if m.name == "sym EP gd small"]
    rows = count(gd, kappas=(10.0,), m=40, seeds=2, budget=100)
    assert {c.iterations for c in rows if c.epsilon == 1e-10} == {None}
    assert {c.reason for c in rows} == {"budget"}
    found = slopes(rows, "log kappa")["sym EP gd small"]
    assert found.points == 0 and found.censored == 2 and math.isnan(found.slope)


def test_fit_against_scipy():
    rng = np.random.default_rng(0)
    counts = [
        Count(
            method="x",
            kappa=k,
            epsilon=1e-3,
            seed=0,
            iterations=int(5 * k**1.5 * rng.uniform(0.8, 1.2)),
            budget=1,
            reason="",
        )
        for k in (2.0, 5.0, 10.0, 20.0, 50.0)
    ]
    found = slopes(counts, "log kappa")["x"]
    reference = scipy.stats.linregress(
        [math.log10(c.kappa) for c in counts], [math.log10(c.iterations) for c in counts]
    )
    half = reference.stderr * scipy.stats.t.ppf(0.975, 3)
    assert found.slope == pytest.approx(reference.slope) and found.r2 == pytest.approx(reference.rvalue**2)
    assert (found.low, found.high) == pytest.approx((reference.slope - half, reference.slope + half))


@pytest.mark.parametrize("freedom", [1, 2, 5, 30, 300])
def test_student_t(freedom):
    assert student_t(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-5)


def test_grid_limits():
    with pytest.raises(ValueError, match="required kappa <= 1e4"):
        count(FAST, kappas=(1e6,))


def test_names_are_unique():
    assert len({m.name for m in METHODS}) == len(METHODS)
    assert all(isinstance(m, Method) for m in METHODS)

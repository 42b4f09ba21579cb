"""Fitted slopes against scipy's regression, against exact laws, and what is over the budget."""

import math

import numpy as np
import pytest
import scipy.stats

from nora.reporting.layouts.rates import shape
from nora.reporting.statistics import Count, slope_in_digits, slope_in_doublings, slope_in_kappa

EPSILONS = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)


def counts_of(law, kappas=(2.0, 10.0, 100.0), seeds=(0, 1)):
    return [Count(k, eps, s, law(k, eps, s)) for k in kappas for eps in EPSILONS for s in seeds]


def test_slope_and_interval_equal_scipys():
    rng = np.random.default_rng(0)
    counts = [Count(k, 1e-3, 0, int(5 * k**1.5 * rng.uniform(0.8, 1.2))) for k in (2.0, 5.0, 10.0, 20.0, 50.0)]
    found = slope_in_kappa(counts)
    reference = scipy.stats.linregress(
        [math.log10(c.kappa) for c in counts], [math.log10(c.iterations) for c in counts]
    )
    half = reference.stderr * scipy.stats.t.ppf(0.975, 3)
    assert (found.value, found.r2) == pytest.approx((reference.slope, reference.rvalue**2))
    assert (found.low, found.high) == pytest.approx((reference.slope - half, reference.slope + half))


def test_a_linear_rate_costs_the_same_per_digit_whatever_the_seeds_head_start():
    counts = counts_of(lambda k, eps, s: round(7 * s - 3 * math.log10(eps)), kappas=(10.0,))
    found = slope_in_digits(counts)
    assert found.value == pytest.approx(3.0) and found.r2 == pytest.approx(1.0)
    assert shape(counts) == "linear"


def test_a_quadratic_rate_costs_the_same_per_doubling_of_digits():
    counts = counts_of(lambda k, eps, s: 9 + round(math.log2(-math.log10(eps))), kappas=(10.0,))
    assert slope_in_doublings(counts).value == pytest.approx(1.0, abs=0.2)
    assert shape(counts) == "quadratic"


def test_one_step_is_said():
    assert shape(counts_of(lambda k, eps, s: 1)) == "one step"


def test_over_the_budget_is_said_not_averaged():
    counts = counts_of(lambda k, eps, s: 50 if eps > 1e-9 else None)
    found = slope_in_kappa(counts)
    assert (found.points, found.censored) == (0, 6) and not found.determined
    assert shape(counts) == "over budget"

"""Table 1, measured: iterations over grids of kappa and epsilon, with fitted slopes and confidence intervals.

Two fits per method. Against kappa (log-log, at the smallest epsilon): the exponent a in iterations ~ kappa^a.
Against epsilon (at each kappa): iterations per log(1/eps) for a linear rate, and per log2 log(1/eps) for a
quadratic one, with the R^2 of both. A slope below the printed exponent is agreement: Table 1 prints upper bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nora.factorization import solvers, starts
from nora.factorization.linalg import State
from nora.factorization.loop import Trace, iterate
from nora.factorization.problems import Asymmetric, Problem, Symmetric, geometric
from nora.factorization.solvers import Solver
from nora.streams import generator

KAPPAS = (2.0, 5.0, 10.0, 30.0, 100.0)
EPSILONS = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)
RANK = {"EP": (5, 5), "OP": (5, 10), "UP": (10, 5)}  # regime: (r_A, r)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of Table 1 that can be run: setting sym | asym, regime EP | OP | UP, and the target's metric."""

    setting: str
    regime: str
    solver: str
    start: str
    eta: float
    metric: str = "relative"
    start_settings: tuple[tuple[str, float], ...] = ()
    damping_is_smallest: bool = False

    @property
    def name(self) -> str:
        """As shown in a table."""
        return f"{self.setting} {self.regime} {self.solver} {self.start}"

    def make_solver(self, kappa: float) -> Solver:
        """ScaledGD(lambda) takes lambda = sigma_{r_A}(A) = 1/kappa, as Xu et al. recommend; others take eta alone."""
        settings = {"damping": 1 / kappa} if self.damping_is_smallest else {}
        return solvers.load(self.solver)(eta=self.eta, **settings)  # type: ignore[call-arg]


SMALL = (("zeta", 1e-3),)
METHODS = (
    Method(setting="asym", regime="EP", solver="gd", start="small", eta=0.2, start_settings=SMALL),
    Method(setting="asym", regime="EP", solver="altgd", start="altgd", eta=0.2),
    Method(setting="asym", regime="EP", solver="scaled_gd", start="small", eta=0.5, start_settings=SMALL),
    Method(setting="asym", regime="EP", solver="scaled_gd", start="nystrom", eta=1.0),
    Method(setting="asym", regime="OP", solver="altgd", start="altgd", eta=0.2),
    Method(setting="asym", regime="OP", solver="scaled_gd_pinv", start="nystrom", eta=1.0),
    Method(setting="asym", regime="UP", solver="scaled_gd", start="nystrom", eta=1.0, metric="weak"),
    Method(setting="sym", regime="EP", solver="gd", start="small", eta=0.2, start_settings=SMALL),
    Method(setting="sym", regime="EP", solver="gd", start="nystrom", eta=0.2),
    Method(setting="sym", regime="EP", solver="scaled_gd", start="small", eta=0.5, start_settings=SMALL),
    Method(setting="sym", regime="EP", solver="scaled_gd", start="nystrom", eta=0.5),
    Method(setting="sym", regime="OP", solver="gd", start="small", eta=0.2, start_settings=SMALL),
    Method(
        setting="sym",
        regime="OP",
        solver="scaled_gd_lambda",
        start="small",
        eta=0.5,
        start_settings=SMALL,
        damping_is_smallest=True,
    ),
    Method(setting="sym", regime="OP", solver="scaled_gd_pinv", start="nystrom", eta=0.5),
    Method(setting="sym", regime="UP", solver="scaled_gd", start="nystrom", eta=0.5, metric="weak"),
)


@dataclass(frozen=True, kw_only=True)
class Count:
    """Iterations of one seed to one epsilon; None: more than the budget, with the reason the run stopped."""

    method: str
    kappa: float
    epsilon: float
    seed: int
    iterations: int | None
    budget: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A slope with its 95 % interval and R^2 over ``points`` counts; ``censored`` further ones were over the budget."""

    method: str
    against: str
    kappa: float | None
    slope: float
    low: float
    high: float
    r2: float
    points: int
    censored: int


def problem_of(method: Method, kappa: float, m: int) -> Problem:
    """A geometric spectrum from 1 to 1/kappa; asymmetric problems are m x 3m/4."""
    r_A, r = RANK[method.regime]
    basis, spectrum = generator(0, "basis"), geometric(r_A, kappa)
    if method.setting == "sym":
        return Symmetric.make(m=m, spectrum=spectrum, rank=r, generator=basis)
    return Asymmetric.make(m=m, n=3 * m // 4, spectrum=spectrum, rank=r, generator=basis)


def count(
    methods: Sequence[Method] = METHODS,
    *,
    kappas: Sequence[float] = KAPPAS,
    epsilons: Sequence[float] = EPSILONS,
    m: int = 100,
    seeds: int = 5,
    budget: int = 20_000,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Count]:
    """Run every method at every kappa down to the smallest epsilon, all seeds at once, and read all the counts."""
    if max(kappas) > 1e4 or m < 20:
        raise ValueError(
            f"kappas, m: given up to {max(kappas)}, {m}, required kappa <= 1e4 and m >= 20; narrow the grid"
        )
    rows = []
    for method in methods:
        for kappa in kappas:
            trace = _run(method, kappa, m, seeds, budget, min(epsilons))
            for seed in range(seeds):
                for epsilon in epsilons:
                    rows.append(
                        Count(
                            method=method.name,
                            kappa=kappa,
                            epsilon=epsilon,
                            seed=seed,
                            iterations=trace.first_below(method.metric, epsilon, seed),
                            budget=budget,
                            reason=trace.reasons[seed].value,
                        )
                    )
            progress(f"{method.name} kappa = {kappa:g}: {trace.iterations}")
    return rows


def _run(method: Method, kappa: float, m: int, seeds: int, budget: int, epsilon: float) -> Trace:
    problem = problem_of(method, kappa, m)
    begin = starts.load(method.start)
    drawn = [begin(problem, generator=generator(i, "init"), **dict(method.start_settings)) for i in range(seeds)]
    Y = [state.Y for state in drawn if state.Y is not None]
    state = State(torch.stack([s.X for s in drawn]), torch.stack(Y) if Y else None)
    return iterate(problem, method.make_solver(kappa), state, budget=budget, tolerance=epsilon, on=method.metric)


def fit(counts: Sequence[Count]) -> list[Fit]:
    """Per method: log10 iterations against log10 kappa, and per kappa against log10(1/eps) and log2 log10(1/eps)."""
    fits = []
    for method in dict.fromkeys(c.method for c in counts):
        rows = [c for c in counts if c.method == method]
        finest = min(c.epsilon for c in rows)
        fits.append(_fit(method, "log kappa", None, [c for c in rows if c.epsilon == finest], _log_kappa, log=True))
        for kappa in dict.fromkeys(c.kappa for c in rows):
            here = [c for c in rows if c.kappa == kappa]
            fits.append(_fit(method, "log(1/eps)", kappa, here, _log_epsilon))
            fits.append(_fit(method, "loglog(1/eps)", kappa, here, lambda c: math.log2(_log_epsilon(c))))
    return fits


def _log_kappa(c: Count) -> float:
    return math.log10(c.kappa)


def _log_epsilon(c: Count) -> float:
    return -math.log10(c.epsilon)


def _fit(
    method: str,
    against: str,
    kappa: float | None,
    rows: Sequence[Count],
    x_of: Callable[[Count], float],
    log: bool = False,
) -> Fit:
    """Least squares with one intercept per seed (starts differ in luck, not in rate) and Student's t interval.

    NaN where the counts left do not determine a slope and its interval.
    """
    reached = [(c, c.iterations) for c in rows if c.iterations is not None]
    seeds = np.array([c.seed for c, _ in reached])
    x = _centred(np.array([x_of(c) for c, _ in reached]), seeds)
    # A count of 0 (the start is within epsilon) has no logarithm; it is counted as one iteration there.
    y = _centred(np.array([math.log10(max(k, 1)) if log else float(k) for _, k in reached]), seeds)
    freedom = len(x) - len(set(seeds.tolist())) - 1
    slope = low = high = r2 = math.nan
    if freedom >= 1 and float(x @ x) > 0:
        slope = float(x @ y / (x @ x))
        rest = float(((y - slope * x) ** 2).sum())
        half = student_t(freedom) * math.sqrt(rest / freedom / float(x @ x))
        low, high = slope - half, slope + half
        r2 = 1 - rest / float(y @ y) if float(y @ y) > 0 else math.nan
    return Fit(
        method=method,
        against=against,
        kappa=kappa,
        slope=slope,
        low=low,
        high=high,
        r2=r2,
        points=len(x),
        censored=len(rows) - len(x),
    )


def _centred(values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Each value less its seed's mean."""
    means = {seed: values[seeds == seed].mean() for seed in set(seeds.tolist())}
    centred: np.ndarray = values - np.array([means[seed] for seed in seeds.tolist()])
    return centred


def student_t(freedom: int, probability: float = 0.975) -> float:
    """The quantile of Student's t, by bisection on its numerically integrated density (this floor has no scipy)."""
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        # t = sqrt(freedom) tan(angle) maps the tail onto a finite interval.
        angle = np.linspace(0.0, math.atan(middle / math.sqrt(freedom)), 2001)
        density = math.exp(log_scale) * math.sqrt(freedom) * np.cos(angle) ** (freedom - 1)
        low, high = (middle, high) if 0.5 + np.trapezoid(density, angle) < probability else (low, middle)
    return (low + high) / 2

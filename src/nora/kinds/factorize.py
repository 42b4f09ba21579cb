"""``kind=factorize``: one problem, one start, one solver, at the paper's own size (float64)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nora.config.schema import STRICT, Count, Name, Positive, Seed
from nora.errors import Interrupted, RunFailed
from nora.files import Json
from nora.kinds.parts.cost import Cost, Label

if TYPE_CHECKING:
    from nora.factorization import Asymmetric, Symmetric, Trace
    from nora.kinds.parts.recipe import Outcome, RunContext

_REPORTS = 100  # lines of progress


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProblemSpec:
    """A matrix of prescribed spectrum and the rank of its factors (paper, Appendix E.1)."""

    name: Name
    symmetric: bool
    m: Count
    n: Count | None = None
    rank: Count
    spectrum: Literal["plateau", "geometric"]
    count: Count
    """Values of the plateau (before the tail), or all values of the geometric spectrum."""
    tail: list[Positive] | None = None
    kappa: Annotated[float, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _fields_fit(self) -> ProblemSpec:
        problems = []
        if self.symmetric != (self.n is None):
            problems.append("n is required for an asymmetric problem and has no meaning for a symmetric one")
        if (self.spectrum == "geometric") != (self.kappa is not None):
            problems.append("kappa is required with spectrum=geometric and has no meaning with plateau")
        smallest = min(self.m, self.n or self.m)
        if self.rank > smallest:
            problems.append(f"rank: given {self.rank}, required at most {smallest}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StartSpec:
    """A start of factorization/starts.py and its settings."""

    name: Name
    xi: Positive | None = None
    xi_n: Positive | None = None
    zeta: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SolverSpec:
    """A solver of factorization/solvers.py and its settings; ``eta_values`` with ``eta_length`` make a staircase."""

    name: Name
    eta: Positive | None = None
    eta_values: Annotated[list[Positive], Field(min_length=1)] | None = None
    eta_length: Count | None = None
    damping: Positive | None = None
    rcond: Positive | None = None

    @model_validator(mode="after")
    def _one_step_size(self) -> SolverSpec:
        if (self.eta is None) == (self.eta_values is None) or (self.eta_values is None) != (self.eta_length is None):
            raise ValueError("give either eta, or eta_values and eta_length")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FactorizeProtocol:
    """How long to iterate and what is noted."""

    name: Literal["factorize"]
    version: Count
    iterations: Count
    metric: Literal["error", "relative", "loss", "weak"]
    every: Count
    tolerance: Positive | None = None
    epsilons: list[Positive] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """One problem, one start, one solver."""

    kind: Literal["factorize"]
    problem: ProblemSpec
    start: StartSpec
    solver: SolverSpec
    protocol: FactorizeProtocol
    seed: Seed
    measure: list[Literal["trace"]]


def label(spec: Spec) -> Label:
    """A solver from a start, on a problem."""
    names = (spec.solver.name, spec.start.name, spec.problem.name)
    return Label(f"{names[0]} from {names[1]}", names[2], names)


def headline(metrics: Mapping[str, Json]) -> str:
    """Why it stopped, and its last metrics."""
    final = ", ".join(f"{key} {value:.4g}" for key, value in metrics["final"].items())
    return f"{metrics['stop']} after {metrics['iterations']} iterations, {final}"


def like(spec: Spec) -> tuple[str, str, str]:
    """Runs of one problem and solver over as many iterations cost about the same."""
    return spec.problem.name, spec.solver.name, str(spec.protocol.iterations)


def cost(spec: Spec) -> Cost:
    """Not known before one was made."""
    del spec
    return Cost()


def execute(spec: Spec, context: RunContext) -> Outcome:
    """Iterates and returns the metrics along the way (measure=[trace]), iterations to each ε, and the stop reason.

    Asked to stop, it ends between two steps; these runs take minutes, so a later attempt begins again.
    """
    from nora.factorization import iterate
    from nora.kinds.parts.factors import build_problem, build_solver, build_start, prove_start
    from nora.kinds.parts.recipe import Outcome, Update

    started = time.monotonic()
    budget = spec.protocol.iterations

    def before_step(t: int) -> None:
        if context.stop_requested():
            raise Interrupted(t, saved=False)
        if t % max(1, budget // _REPORTS) == 0:
            context.report(Update("iterate", t, budget, {}))

    try:
        problem = build_problem(spec.problem, spec.seed)
        state = build_start(spec.start, problem, spec.seed)
        solver = build_solver(spec.solver)
        proof = prove_start(spec.start, problem, state, spec.seed)
        if not proof["passed"]:
            raise RunFailed("; ".join(proof["problems"]))
        trace = iterate(
            problem, solver, state, budget=budget, tolerance=spec.protocol.tolerance,
            on=spec.protocol.metric, every=spec.protocol.every, before_step=before_step,
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise RunFailed(str(error)) from None
    context.report(Update("iterate", trace.iterations[0], budget, {}))
    return Outcome(
        metrics=_metrics(spec, problem, trace), proof=proof,
        run={"seconds": time.monotonic() - started, "step_seconds": trace.seconds},
    )  # fmt: skip


def _metrics(spec: Spec, problem: Symmetric | Asymmetric, trace: Trace) -> dict[str, Json]:
    curves = {name: trace.curve(name) for name in trace.metrics}
    metrics: dict[str, Json] = {
        "iterations": trace.iterations[0],
        "stop": trace.reasons[0].value,
        "final": {name: _finite(curve[-1][1]) for name, curve in curves.items()},
        "best_error": float(problem.best_error()),
    }
    if spec.protocol.epsilons is not None:
        name = spec.protocol.metric
        metrics["first_below"] = [[eps, trace.first_below(name, eps)] for eps in spec.protocol.epsilons]
    if "trace" in spec.measure:
        metrics["steps"] = [step for step, _ in curves[spec.protocol.metric]]
        wanted = {spec.protocol.metric, "error", "weak"} & set(curves)  # the loss follows from the error
        metrics["trace"] = {name: [_finite(value) for _, value in curves[name]] for name in sorted(wanted)}
    return metrics


def _finite(value: float) -> float | None:
    """Eight significant digits. JSON has no infinity: it becomes null, and the stop reason says why."""
    return float(f"{value:.8g}") if abs(value) < float("inf") else None

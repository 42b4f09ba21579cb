"""``kind=factorize``: a matrix, a start and a solver."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nora.runs.schema.fields import STRICT, Count, Name, Positive, Seed


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
    """A file of factorization/starts and its settings."""

    name: Name
    xi: Positive | None = None
    xi_n: Positive | None = None
    zeta: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SolverSpec:
    """A file of factorization/solvers and its settings; ``eta_values`` with ``eta_length`` make a staircase."""

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
class FactorizeSpec:
    """``kind=factorize``: one problem, one start, one solver."""

    kind: Literal["factorize"]
    problem: ProblemSpec
    start: StartSpec
    solver: SolverSpec
    protocol: FactorizeProtocol
    seed: Seed
    measure: list[Literal["trace"]]

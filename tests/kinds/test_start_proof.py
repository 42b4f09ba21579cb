"""The proof of a factorisation's start: every start passes it on every kind of problem, and one that is not made by its
formula fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nora.errors import RunFailed
from nora.execution.execute import execute
from nora.factorization import Problem, State, starts
from nora.kinds import FactorizeSpec, compose_run
from nora.kinds.factorize import ProblemSpec, StartSpec
from nora.kinds.parts.factors import build_problem, build_start, expected_start, prove_start
from nora.store.runs import Store

SETTINGS = {
    "small": StartSpec(name="small", zeta=1e-3),
    "nystrom": StartSpec(name="nystrom", xi=0.1),
    "nystrom_gradient": StartSpec(name="nystrom_gradient", xi=0.1),
    "nystrom_perturbed": StartSpec(name="nystrom_perturbed", xi=0.1, xi_n=1e-6),
    "nystrom_stiefel": StartSpec(name="nystrom_stiefel", xi=0.1),
    "altgd": StartSpec(name="altgd", zeta=1e-2),
}


def _problem(symmetric: bool) -> Problem:
    n = None if symmetric else 18
    spec = ProblemSpec(name="p", symmetric=symmetric, m=24, n=n, rank=6, spectrum="geometric", count=8, kappa=100.0)
    return build_problem(spec, 3)


def test_every_start_has_a_formula() -> None:
    assert sorted(SETTINGS) == starts.names()


CASES = sorted({(name, symmetric) for name in SETTINGS for symmetric in (True, False)} - {("altgd", True)})


@pytest.mark.parametrize(("name", "symmetric"), CASES)
def test_a_start_is_its_formula_and_no_other_starts(name: str, symmetric: bool) -> None:
    problem = _problem(symmetric)
    state = build_start(SETTINGS[name], problem, 3)
    assert prove_start(SETTINGS[name], problem, state, 3)["passed"]
    assert not prove_start(SETTINGS[name], problem, state, 4)["passed"], "another seed's draw"
    for other, spec in SETTINGS.items():
        same = other == name or {name, other} <= {"nystrom", "nystrom_gradient"}
        if not same and (other, symmetric) in CASES:
            assert not prove_start(spec, problem, state, 3)["passed"], other


def test_a_partner_that_is_not_zero_fails() -> None:
    problem, spec = _problem(False), SETTINGS["nystrom"]
    state = build_start(spec, problem, 3)
    assert state.Y is not None
    assert not prove_start(spec, problem, State(state.X, state.Y + 1e-6), 3)["passed"]


def test_a_start_without_a_formula_is_refused() -> None:
    with pytest.raises(ValueError, match="start other: no formula to prove it by"):
        expected_start(replace(SETTINGS["small"], name="other"), _problem(True), 3)


def test_a_run_from_another_start_than_it_says_stops(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released code's fault in this half: the sketch is asked for, something else is iterated."""
    small = starts.load("small")
    monkeypatch.setattr(
        starts, "load", lambda name: lambda problem, *, generator, xi: small(problem, generator=generator)
    )
    spec, settings, _ = compose_run(
        checkout, ["kind=factorize", "start=nystrom", "problem.m=30", "exec.progress=false"]
    )
    assert isinstance(spec, FactorizeSpec)
    with pytest.raises(RunFailed, match="the start differs from nystrom's formula by"):
        execute(spec, settings, checkout=checkout, store=Store(tmp_path))

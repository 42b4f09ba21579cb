"""The ledger: its verdicts are the committed ones, and it can see when they are not."""

import json

import pytest
import torch

from nora.factorization import solvers
from nora.factorization.theory import Claim, Finding, Verdict, check_expectations, claims, exact, ledger, run_ledger
from nora.factorization.theory.core import judge, worst_case
from nora.streams import generator


@pytest.fixture(scope="module")
def rows():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    seen = []
    found = run_ledger(progress=seen.append)
    torch.set_num_threads(before)
    assert seen == found
    return found


@pytest.mark.slow
def test_every_verdict_is_the_committed_one(rows):
    assert check_expectations(rows) == []


@pytest.mark.slow
def test_rows_are_plain_data_and_identities_had_a_thousand_instances(rows):
    for row in rows:
        assert json.loads(json.dumps(row.as_dict()))["verdict"] == row.verdict.value
        if row.verdict is Verdict.HOLDS:
            assert row.instances >= 1000
        if row.verdict in (Verdict.REFUTED, Verdict.CONDITIONAL):
            assert row.counterexample


def test_every_lemma_and_theorem_has_a_row():
    ids = [claim.id for claim in claims()]
    assert ids == list(ledger.EXPECTED)
    required = {f"Lemma {i}" for i in range(1, 20)} | {f"Theorem {i}" for i in range(1, 7)}
    required |= {"Corollary 1", "Definition 1", "Definition 2", *(f"Appendix A.{i}" for i in range(2, 6))}
    assert required <= set(ids)


def test_it_repeats_bit_for_bit():
    first, second = (run_ledger(only=["Lemma 9", "Lemma 19"]) for _ in range(2))
    assert first == second


def test_unknown_id():
    with pytest.raises(ValueError, match="given Lemma 77, required ids"):
        run_ledger(only=["Lemma 77"])


@pytest.mark.parametrize("claim", ["Equation (12)", "Theorem 3", "Lemma 6", "Corollary 1"])
def test_a_wrong_solver_breaks_its_rows(claim, monkeypatch):
    """A factor 1.001 on the preconditioner is not ScaledGD any more."""
    right = solvers.right_inverse_transposed
    monkeypatch.setattr(solvers, "right_inverse_transposed", lambda X: 1.001 * right(X) + 1e-6 * X)
    rows = run_ledger(only=[claim])
    problems = check_expectations(rows, complete=False)
    # Lemma 6 is about directions only, which a factor leaves alone: it must go on holding.
    assert (problems == []) == (claim == "Lemma 6")


def test_a_wrong_pinv_breaks_its_rows(monkeypatch):
    right = solvers.gram_pinv
    monkeypatch.setattr(solvers, "gram_pinv", lambda X, rcond: right(X, 1e-1))
    rows = run_ledger(only=["Lemma 12", "Theorem 5", "Theorem 6"])
    assert len(check_expectations(rows, complete=False)) == 3


def test_missing_and_unexpected_rows_are_reported():
    rows = run_ledger(only=["Lemma 14"])
    assert len(check_expectations(rows)) == len(ledger.EXPECTED) - 1
    assert check_expectations(rows, complete=False) == []


def test_a_changed_verdict_is_reported(monkeypatch):
    monkeypatch.setitem(ledger.EXPECTED, "Lemma 10", Verdict.HOLDS)
    (problem,) = check_expectations(run_ledger(only=["Lemma 10"]), complete=False)
    assert problem.startswith("Lemma 10: refuted (worst ") and problem.endswith("expected: holds")


def test_a_changed_frequency_is_reported(monkeypatch):
    monkeypatch.setitem(ledger.FREQUENCIES, "Lemma 19", 0.5)
    (problem,) = check_expectations(run_ledger(only=["Lemma 19"]), complete=False)
    assert "frequency 0.970, expected 0.5" in problem


def finding(**change):
    return Finding(**({"instances": 1, "searched": 0, "worst": 0.5, "limit": 1.0} | change))


def test_judge():
    assert judge(finding()) is Verdict.HOLDS
    assert judge(finding(worst=2.0)) is Verdict.BROKEN
    assert judge(finding(worst=2.0, counterexample="x")) is Verdict.REFUTED
    assert judge(finding(condition="c", counterexample="x")) is Verdict.CONDITIONAL
    assert judge(finding(condition="c")) is Verdict.BROKEN  # a condition nobody showed to be needed
    assert judge(finding(condition="c", counterexample="x", worst=2.0)) is Verdict.BROKEN
    assert judge(finding(frequency=0.9)) is Verdict.FREQUENCY
    assert judge(finding(worst=float("nan"))) is Verdict.BROKEN


def test_the_search_finds_what_random_draws_do_not():
    """A peak of width 0.01 in five dimensions."""
    target = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0], dtype=torch.float64)

    def ratio(p):
        distance = (p - target).norm(dim=1)
        return 1 / (1 + distance) + (distance < 0.01)

    blind = worst_case(ratio, 5, generator=generator(0, "search"), rounds=0)
    found = worst_case(ratio, 5, generator=generator(0, "search"))
    assert blind.value < 1 < found.value
    assert found.random >= 1000 and found.searched > 1000


def test_exact_counterexamples():
    """r = 1, exact: the reverse of Cauchy and Schwarz."""
    assert exact.lemma_10().endswith("= 3/8 > r / sigma_r(B) = 1/3")
    assert "24.99" in f"{float(exact.overshoot(2)):.2f}"


def test_claims_are_data():
    assert all(isinstance(claim, Claim) and claim.statement and claim.quantity for claim in claims())

"""The paper's sentences: what is committed is what the records say, and a judge that can be wrong both ways."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nora.cli import main
from nora.errors import UserError
from nora.reporting.claims import judged, quoted, trained
from nora.reporting.claims.evidence import DIFFERS, HOLDS, NOISE, NOT_RUN, Evidence, Outcome
from nora.reporting.claims.judged import Claim, Judged
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import Snapshot, take_snapshot


@pytest.fixture(scope="module")
def snapshot(checkout: Path) -> Snapshot:
    return take_snapshot(Store(checkout / "results"))


@pytest.fixture(scope="module")
def found(checkout: Path, snapshot: Snapshot) -> list[Judged]:
    return judged.evidence_of(checkout, snapshot, checkout / "results")[0]


def test_the_committed_verdicts_are_what_the_records_say(found: list[Judged]) -> None:
    assert judged.changed(found) == []
    assert {j.outcome.verdict for j in found} == {HOLDS, NOISE, DIFFERS, NOT_RUN}
    assert all(j.outcome.verdict == NOT_RUN for j in found if j.scale == "paper"), "nothing of paper scale has run"


def test_every_verdict_leads_to_records_or_to_what_it_takes(found: list[Judged], snapshot: Snapshot) -> None:
    for j in found:
        if j.outcome.verdict == NOT_RUN:
            assert any(note.startswith("takes ") for note in j.outcome.notes), j.name
        elif j.scale != "printed" and j.claim.test not in ("ledger", "cheaper_start", "faster_factorisation"):
            assert j.outcome.runs and all(identity in snapshot for identity in j.outcome.runs), j.name


def test_a_difference_of_accuracies_is_that_of_the_committed_table(found: list[Judged], checkout: Path) -> None:
    """Against the CSV of Table 2, which another path writes: the mean of the seeds' differences over its columns."""
    rows = [line.split(",") for line in (checkout / "results/tables/table2.small.csv").read_text().splitlines()[1:]]
    scores = {(r[2], r[3], r[5]): float(r[6]) for r in rows if r[6]}
    gaps = [score - scores["lora", *cell] for (method, *cell), score in scores.items() if method == "nora"]
    one = next(j for j in found if j.name == "few-shot-nora@small")
    assert one.outcome.effect == pytest.approx(100 * sum(gaps) / len(gaps), abs=1e-9)
    assert len(gaps) == 5 * int(one.outcome.notes[0].split()[0]), one.outcome.notes
    assert one.outcome.n.startswith("5 seeds × ") and one.outcome.verdict == NOISE


def _moved(snapshot: Snapshot, ids: tuple[str, ...], by: float) -> dict[str, Record]:
    """The records with the test accuracy of some moved."""
    moved = dict(snapshot)
    for identity in ids:
        record = moved[identity]
        test = {**record.metrics["test"], "accuracy": record.metrics["test"]["accuracy"] + by}
        result = {**record.result, "metrics": {**record.metrics, "test": test}}
        moved[identity] = replace(record, result=result)
    return moved


@pytest.mark.parametrize(("by", "verdict"), [(0.12, HOLDS), (-0.12, DIFFERS)])
def test_a_planted_effect_is_seen_on_either_side(
    by: float, verdict: str, snapshot: Snapshot, checkout: Path, found: list[Judged]
) -> None:
    one = next(j for j in found if j.name == "few-shot-nora@small")
    nora = tuple(i for i in one.outcome.runs if snapshot[i].spec["method"]["name"] == "nora")
    assert len(nora) == 5 * int(one.outcome.notes[0].split()[0]), one.outcome.notes
    evidence = Evidence(checkout, _moved(snapshot, nora, by), checkout / "results")
    claim = replace(one.claim, given={**one.claim.given, "printed": None})
    again = next(j for j in judged.judge([claim], evidence) if j.scale == "small")
    assert again.outcome.verdict == verdict and again.outcome.effect == pytest.approx(one.outcome.effect + 100 * by)  # type: ignore[operator]


def test_a_missing_run_leaves_no_verdict(snapshot: Snapshot, checkout: Path, found: list[Judged]) -> None:
    one = next(j for j in found if j.name == "dreambooth-lora@mini")
    fewer = {i: r for i, r in snapshot.items() if i != one.outcome.runs[0]}
    (again,) = [
        j for j in judged.judge([one.claim], Evidence(checkout, fewer, checkout / "results")) if j.scale == "mini"
    ]
    assert again.outcome.verdict == NOT_RUN and again.outcome.notes[0].startswith("takes 1 runs")


def test_at_chance_nothing_holds() -> None:
    claim = Claim(id="a", text="", place="", test="scores")
    clear = Outcome("", 5.0, 4.0, 6.0, p=1e-6)
    assert judged._decided(Judged(claim, "mini", clear), 1e-6).outcome.verdict == HOLDS
    assert judged._decided(Judged(claim, "mini", replace(clear, chance=True)), 1e-6).outcome.verdict == NOISE
    assert judged._decided(Judged(claim, "mini", clear), 0.06).outcome.verdict == NOISE


def test_the_papers_own_noise_by_hand() -> None:
    """Table 4, LLaMA-7B: NoRA 76.69, LoRA 76.19; two binomial errors of eight sets each."""
    questions = [3270, 1838, 1954, 10042, 1267, 2376, 1172, 500]
    outcome = trained._printed_scores("table4", "nora", "lora", "llama_7b", questions)
    assert outcome.effect == pytest.approx(76.69 - 76.19, abs=0.01)
    assert outcome.high - outcome.effect == pytest.approx(1.96 * 0.554, abs=0.01)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("- {id: a, text: t, place: p, test: guess}", "allowed scores"),
        ("- {id: a, text: t, place: p, test: rate, wrong: 1}", "wrong"),
        ("- {id: a, text: t, place: p, test: rate, verdict: {tiny: holds}}", "tiny"),
        ("- {id: a, text: t, place: p, test: rate}\n- {id: a, text: t, place: p, test: rate}", "a twice"),
    ],
)
def test_a_wrong_file_says_so_in_a_line(broken: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "claims.yaml").write_text(broken, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        judged.read_claims(tmp_path)


def test_a_changed_verdict_is_named(found: list[Judged]) -> None:
    one = next(j for j in found if j.outcome.verdict == HOLDS)
    other = replace(one, outcome=replace(one.outcome, verdict=DIFFERS))
    (line,) = judged.changed([other])
    assert one.name in line and "'differs'" in line and "'holds'" in line


def test_the_verb_tells_one_claim_with_its_runs(capsys: pytest.CaptureFixture[str], snapshot: Snapshot) -> None:
    assert main(["claims", "deployment-nora"]) == 0
    told = capsys.readouterr().out
    ids = re.findall(r"nora show ([0-9a-f]{16})", told)
    assert told.startswith("deployment-nora@here") and ids and all(i in snapshot for i in ids)
    assert main(["claims", "deployment-nor"]) == 2
    assert "deployment-nora" in capsys.readouterr().err


def test_every_number_that_may_be_quoted_leads_to_its_runs(checkout: Path, snapshot: Snapshot) -> None:
    numbers = json.loads((checkout / "results/numbers.json").read_text())
    macros = re.findall(r"\\newcommand\{\\(\w+)\}", (checkout / "results/numbers.tex").read_text())
    assert sorted(macros) == sorted(n["macro"] for n in numbers.values()) and all(m.isalpha() for m in macros)
    assert all(i in snapshot for n in numbers.values() for i in n["runs"])
    one = numbers["table2.small.Test score, %.NoRA.SST-2"]
    values = [snapshot[i].metrics["test"]["accuracy"] for i in one["runs"]]
    assert one["value"] == pytest.approx(100 * sum(values) / 5, abs=0.05) and one["text"].startswith(str(one["value"]))


def test_two_cells_of_a_name_are_told_apart() -> None:
    numbers = [quoted.Number("a/0.1", "1", 1.0, (), ""), quoted.Number("a/0.1", "2", 2.0, (), "")]
    assert [n.macro for n in quoted.distinct(numbers)] == ["noraAZeroPointOne", "noraAZeroPointOneB"]
    with pytest.raises(ValueError, match="noraAZeroPointOne twice"):
        quoted.numbers_tex(numbers)


def test_the_findings_quote_what_was_judged(found: list[Judged], checkout: Path) -> None:
    page = (checkout / "results" / "FINDINGS.md").read_text(encoding="utf-8")
    assert page == quoted.findings(found)
    assert len(page.split()) < 1300, "a page"
    assert (checkout / "results" / "figures/fig1.png").is_file()


def test_the_readme_shows_the_table_of_the_findings(found: list[Judged], checkout: Path) -> None:
    page = (checkout / "README.md").read_text(encoding="utf-8")
    shown = page.split("<!-- findings -->\n")[1].split("<!-- /findings -->")[0]
    assert shown == quoted.readme_table(found), "copy `nora.reporting.claims.quoted.readme_table` between the marks"


@pytest.mark.parametrize(
    ("test", "given", "verdict"),
    [
        ("rate", {"panel": "sym_ep_scaledgd_small", "shape": "quadratic"}, DIFFERS),  # it is linear
        ("rate", {"panel": "sym_ep_nystrom", "shape": "one step"}, DIFFERS),
        ("tail", {"curves": "ξ = ", "ratio": 0.5, "within": 0.05, "first": 5, "floor": 1e-12}, DIFFERS),  # quadratic
        ("insensitive", {"curves": "ξ = ", "below": 1e-10, "against": ["a", "ScaledGD, Nyström start"]}, DIFFERS),
        ("needs_stopping", {"panels": ["sym_op_gd"]}, HOLDS),  # over its budget: the smallest error is not reached
        ("deployed", {"inits": ["pissa"], "loads": True}, DIFFERS),
        ("deployed", {"inits": ["nystrom"], "loads": False}, DIFFERS),
        ("cheaper_start", {"ours": "SVD (PiSSA)", "others": ["nora"]}, DIFFERS),
        ("ledger", {"row": "Lemma 10"}, DIFFERS),
        ("ledger", {"row": "Lemma 0"}, NOT_RUN),
    ],
)
def test_what_is_false_is_not_said_to_hold(
    test: str, given: dict[str, object], verdict: str, snapshot: Snapshot, checkout: Path
) -> None:
    """Negative controls: each test of what is measured, asked what the same records deny."""
    figure = {"figure": "fig1", "panel": "b"} if test in ("tail", "insensitive") else {}
    outcome = judged.TESTS[test](Evidence(checkout, snapshot, checkout / "results"), "", **figure, **given)
    assert outcome.verdict == verdict

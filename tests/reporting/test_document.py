"""Table 2's layout from made-up records: golden texts, gaps shown as gaps, banner and footnotes always there.

tests/golden/table2.mini.{md,tex,csv} were written by tests/golden/regenerate.py from tests/synthetic.py and read by
a person; run ids are replaced, since they change with every default.
"""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path

import pytest

from nora.reporting.collation import build_artefact, write_artefact
from nora.reporting.document import csv_text, to_csv, to_markdown
from nora.reporting.latex import escape_latex, to_latex
from nora.reporting.statistics import summarize
from nora.store.record import Record
from nora.tables.methods import Table, load_table

from golden.regenerate import SUFFIXES, golden_texts  # isort: skip
from synthetic import complete, record_of


@pytest.fixture(scope="module")
def table(checkout: Path) -> Table:
    return load_table(checkout, "table2", ["scale=mini", "seed=0,1", "task=cb,rte"])


@pytest.fixture(scope="module")
def records(table: Table, checkout: Path) -> dict[str, Record]:
    return complete(table)


def test_golden(checkout: Path) -> None:
    for suffix, text in golden_texts(checkout).items():
        assert text == (checkout / "tests" / "golden" / f"table2.mini.{suffix}").read_text(encoding="utf-8"), suffix
    assert set(SUFFIXES) == {"md", "tex", "csv"}


def _rows(table: Table, records: dict[str, Record], checkout: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(build_artefact(table, records)))))


def _line(text: str, label: str) -> list[str]:
    (line, *_) = [line for line in text.splitlines() if line.startswith(f"| {label} ")]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_each_mean_and_spread_is_that_of_its_seeds(table: Table, records: dict[str, Record], checkout: Path) -> None:
    """Recomputed from the csv by the standard library; the csv's values are those of the records."""
    text = to_markdown(build_artefact(table, records))
    rows = _rows(table, records, checkout)
    for method, label in (("lora", "LoRA"), ("nora_plus", "NoRA+"), ("prefix", "Prefix")):
        averages = []
        for i, task in enumerate(("cb", "rte"), start=1):
            own = [r for r in rows if (r["method"], r["task"]) == (method, task)]
            assert [r["seed"] for r in own] == ["0", "1"] and len({r["settings"] for r in own}) == 1
            values = [float(r["value"]) for r in own]
            assert values == [records[r["id"]].metrics["test"]["accuracy"] for r in own]
            expected = f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
            assert _line(text, label)[i].strip("*") == expected
            averages.append(100 * statistics.mean(values))
        assert _line(text, label)[3] == f"{statistics.mean(averages):.1f}"


def _chosen(table: Table, records: dict[str, Record], checkout: Path, method: str, seed: str) -> str:
    rows = _rows(table, records, checkout)
    return next(r["id"] for r in rows if (r["method"], r["task"], r["seed"]) == (method, "cb", seed))


def test_a_missing_seed_shows_missing_and_no_mean_of_fewer(
    table: Table, records: dict[str, Record], checkout: Path
) -> None:
    kept = {k: r for k, r in records.items() if r.spec["method"]["name"] != "prefix" or r.spec["task"]["name"] != "cb"}
    line = _line(to_markdown(build_artefact(table, kept)), "Prefix")
    assert line[1] == "missing" and line[2] != "missing" and line[3] == "missing", "no average over fewer tasks"
    gone = _chosen(table, records, checkout, "nora", "1")
    line = _line(to_markdown(build_artefact(table, {k: r for k, r in records.items() if k != gone})), "NoRA")
    assert line[1] == "missing" and line[3] == "missing"


def test_a_diverged_seed_is_not_averaged_over(checkout: Path) -> None:
    """With one trial per method there is nothing else to choose: the gap says why."""
    table = load_table(checkout, "table2", ["scale=smoke", "seed=0,1", "task=cb"])
    records = complete(table)

    victim = next(c for c in table.cells(records) if (c.row, c.seed) == ("nora", 1))
    records[str(victim.id)] = record_of(victim, status="diverged")
    text = to_markdown(build_artefact(table, records))
    assert "±" not in _line(text, "NoRA")[1] and _line(text, "NoRA")[1].startswith("diverged (1/")
    assert "±" in _line(text, "NoRA+")[1]


def test_a_cell_without_a_choice_leads_to_the_runs_of_its_search(table: Table, checkout: Path) -> None:
    document = build_artefact(table, {})
    runs = {line.label: line.entries[0].runs for line in document.blocks[0].lines}
    assert len(runs["LoRA"]) == len(set(runs["LoRA"])) == 4 * 2, "four settings, two seeds"
    assert runs["NoRA"] == (), "they wait for LoRA's batch size: they have no ids yet"


def test_no_records_make_a_table_of_gaps(table: Table, checkout: Path) -> None:
    text = to_markdown(build_artefact(table, {}))
    for label in ("Prefix", "LoRA", "OLoRA", "PiSSA", "NoRA", "NoRA+", "LoRA-P (not in the paper)"):
        assert _line(text, label)[1:4] == ["missing"] * 3
    assert "±" not in text.split("\n- ")[0]


@pytest.mark.parametrize("scale, words", [("mini", "not the paper's numbers"), ("smoke", "These numbers mean nothing")])
def test_the_banner_is_in_the_texts_a_person_reads(scale: str, words: str, checkout: Path) -> None:
    table = load_table(checkout, "table2", [f"scale={scale}", "seed=0", "task=cb"])
    document = build_artefact(table, {})
    assert words in to_markdown(document) and words in to_latex(document)
    assert document.name == f"table2.{scale}"
    assert all(row[1] == scale for row in document.csv_rows), "each csv row names its scale"


def test_the_papers_value_stands_beside_ours_at_paper_scale_alone(
    table: Table, records: dict[str, Record], checkout: Path
) -> None:
    mini, table = table, load_table(checkout, "table2", ["scale=paper", "seed=0,1", "task=sst2"])
    text = to_markdown(build_artefact(table, complete(table)))
    assert "(paper 93.4 ± 0.7, Δ " in _line(text, "NoRA")[1] and "n=2" in _line(text, "NoRA")[1]
    assert "(paper" not in _line(text, "LoRA-P (not in the paper)")[1]
    assert "(paper" not in to_markdown(build_artefact(mini, records))


def test_notes_count_trials_proofs_and_dirty_runs(table: Table, records: dict[str, Record], checkout: Path) -> None:
    notes = "\n".join(build_artefact(table, records).notes)
    assert "n = 2 seeds (0, 1)" in notes
    assert "Prefix 2, LoRA 4, OLoRA 2, PiSSA 2, NoRA 4, NoRA+ 4, LoRA-P 2" in notes
    assert "Init proof passed in 28 of 28 runs" in notes and "uncommitted" not in notes
    dirty = {k: Record(r.id, r.result, {**r.run, "dirty": True}) for k, r in records.items()}
    assert "28 of the runs were made from a checkout with uncommitted changes" in "\n".join(
        build_artefact(table, dirty).notes
    )


def test_the_best_of_a_column_is_bold_only_if_it_is_clear_and_all_are_there(
    table: Table, records: dict[str, Record], checkout: Path
) -> None:
    task, i = table.columns[0], 0
    raised = {}
    for key, record in records.items():  # NoRA above all others on one task, whatever the seed
        test = record.metrics["test"]
        if record.spec["task"]["name"] == task:
            value = 0.9 if record.spec["method"]["name"] == "nora" else 0.5 + test["accuracy"] / 100
            metrics = {**record.metrics, "test": {**test, "accuracy": value}}
            record = Record(key, {**record.result, "metrics": metrics}, record.run)
        raised[key] = record
    shown = {line.label: line.entries[i] for line in build_artefact(table, raised).blocks[0].lines[:6]}
    assert {label for label, e in shown.items() if e.best} == {"NoRA"}
    some = {k: r for k, r in raised.items() if r.spec["method"]["name"] != "pissa"}
    assert not any(e.best for x in build_artefact(table, some).blocks[0].lines for e in x.entries)


def test_a_column_at_chance_is_grey_and_says_so(table: Table, records: dict[str, Record], checkout: Path) -> None:
    flat = {}
    for key, record in records.items():
        test = {**record.metrics["test"], "accuracy": 0.5 + 0.03 * (record.spec["method"]["name"] == "nora")}
        metrics = {**record.metrics, "test": {**test, "n": 64}, "majority_accuracy": 0.5}
        flat[key] = Record(key, {**record.result, "metrics": metrics}, record.run)
    document = build_artefact(table, flat)
    assert document.blocks[0].columns[0].endswith(" (at chance)")
    entry = document.blocks[0].lines[4].entries[0]
    assert entry.grey and not entry.best and "two binomial standard errors" in "\n".join(document.notes)
    assert r"\textcolor{gray}{53.0" in to_latex(document)


def test_unchanged_files_are_left_alone(table: Table, tmp_path: Path, checkout: Path) -> None:
    document = build_artefact(table, {})
    paths = write_artefact(document, tmp_path)
    before = [p.stat().st_mtime_ns for p in paths]
    assert [p.name for p in paths] == ["table2.mini.md", "table2.mini.tex", "table2.mini.csv"]
    assert [p.stat().st_mtime_ns for p in write_artefact(document, tmp_path)] == before


def test_latex_is_escaped() -> None:
    assert escape_latex("100 % of opt_b & {c} ± ξ \\") == r"100 \% of opt\_b \& \{c\} $\pm$ $\xi$ \textbackslash{}"
    assert escape_latex('X_{t+1}^T, σ_r(A), "so", `a_b`') == (
        r"X$_{t+1}$$^{T}$, $\sigma$$_{r}$(A), ``so'', \texttt{a\_b}"
    )
    assert escape_latex("-0.5 [-1.2, 3], 1e-05, few-shot, A-1") == r"$-$0.5 [$-$1.2, 3], 1e-05, few-shot, A-1"
    assert escape_latex("漢 X_{漢} \x1b a\n\tb") == "{}[U+6F22] X$_{[U+6F22]}$ [U+001B] a b"
    assert escape_latex("[0.1, 0.2]") == "{}[0.1, 0.2]", "after the end of a line it would be a length"


def test_summary_against_the_standard_library() -> None:
    values = [0.1, 0.4, 0.35]
    summary = summarize(values)
    assert summary.mean == pytest.approx(statistics.mean(values))
    assert summary.std == pytest.approx(statistics.stdev(values)) and summary.n == 3
    assert summarize([0.5]).std is None
    for bad in ([], [float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="required one or more finite values"):
            summarize(bad)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"), ("@SUM(1)", "'@SUM(1)"), ("+1+2", "'+1+2"), ("-x", "'-x"),
        ("\t=1", "'\t=1"), ("-0.5", "-0.5"), ("+1e-3", "+1e-3"), (-0.5, "-0.5"), ("a=b", "a=b"), ("", ""),
    ],
)  # fmt: skip
def test_no_cell_of_a_csv_is_a_formula(value: object, cell: str) -> None:
    (row,) = list(csv.DictReader(io.StringIO(csv_text(("x", "y"), [(value, 1)]))))
    assert row["x"] == cell

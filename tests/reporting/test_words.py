"""What a reader meets in the texts: raised and lowered letters, state words that are explained, settings in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from nora.reporting import labels
from nora.reporting.collation import build_artefact
from nora.reporting.document import Block, Document, Entry, Line, explained
from nora.reporting.labels import rendered
from nora.reporting.latex import to_latex
from nora.reporting.ledger import mathematics
from nora.tables.target import load_target


def _marked(text: str) -> str:
    return rendered(
        text, plain=str, sub=lambda t: f"↓{_marked(t)}|", sup=lambda t: f"↑{_marked(t)}|", code=lambda t: f"<{t}>"
    )


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("opt_mini, q_proj, V_dog, nora_plus, pissa_niter_4", "opt_mini, q_proj, V_dog, nora_plus, pissa_niter_4"),
        ("X_{t+1}^T A^+ X_t", "X↓t+1|↑T| A↑+| X↓t|"),
        ("2^{-2^{t+1}} σ_{r_A}(A), σ_min", "2↑-2↑t+1|| σ↓r↓A||(A), σ↓min|"),
        ("‖X‖_F = 2^(T+2), κ^2, `a_b ^`", "‖X‖↓F| = 2↑T+2|, κ↑2|, <a_b ^>"),
    ],
)
def test_what_is_raised_and_lowered_and_what_is_a_name(text: str, marked: str) -> None:
    assert _marked(text) == marked


def test_the_ledgers_ascii_is_read_as_mathematics() -> None:
    text = "eta <= 1/2: ||X_t - A||_F >= sqrt(kappa) sigma_r(A), (1-theta)^2, theta-free, beta_t"
    assert mathematics(text) == "η ≤ 1/2: ‖X_t − A‖_F ≥ √(κ) σ_r(A), (1−θ)^2, θ-free, β_t"
    assert mathematics("no meta words: meta, beta2") == "no meta words: meta, β2"


def _document(*texts: str) -> Document:
    return Document("x", "X", "", (Block("", ("a",), tuple(Line("l", (Entry(t),)) for t in texts)),), ("Note.",))


def test_every_state_word_in_a_table_is_explained_and_no_other() -> None:
    notes = explained(_document("missing (1/3)", "1.0", "stale 1/3", "waits for LoRA")).notes
    assert notes[0] == "Note." and len(notes) == 2
    assert all(f"“{word}”" in notes[1] for word in ("missing", "stale", "waits")) and "diverged" not in notes[1]
    assert explained(_document("1.0", "not missing")).notes == ("Note.",)


def test_a_committed_table_with_gaps_explains_them(checkout: Path) -> None:
    document = build_artefact(load_target(checkout, "table2", ["scale=paper"]), {})
    assert isinstance(document, Document) and "“missing”" in document.notes[-1]


@pytest.mark.parametrize(
    ("given", "spelt"),
    [(1e-05, "1e-5"), (0.0001, "1e-4"), (0.00025, "2.5e-4"), (0.003, "0.003"), (0.0, "0"), (16, "16"), (None, "–"),
     ([0.9, 0.999], "0.9, 0.999"), ("adamw", "AdamW"), ("q_proj", "q_proj"), (1e-10, "1e-10")],
)  # fmt: skip
def test_a_setting_is_spelt_as_a_paper_does(given: object, spelt: str) -> None:
    assert labels.value(given) == spelt


def test_wide_tables_keep_their_small_print_and_narrow_ones_are_centred() -> None:
    wide = Block("", tuple("abcdefghi"), (Line("LoRA-P (not in the paper)", (Entry("1", detail="paper 2, Δ 3"),) * 9),))
    narrow = Block("", ("a",), (Line("Equation (12)", (Entry("x" * 70),)),))
    text = to_latex(Document("x", "X", "", (wide, narrow)))
    assert r"\footnotesize\setlength{\tabcolsep}{3pt}" in text and r"\leavevmode\box0" in text
    assert r"{\fontsize{6}{7}\selectfont paper 2}\\[-3pt]{\fontsize{6}{7}\selectfont $\Delta$ 3}" in text
    assert r"{\fontsize{6}{7}\selectfont (not in the paper)}" in text and "Equation (12) &" in text
    assert r"\raggedright xxx" in text and r"\begin{longtable}" not in text
    assert "labelformat=empty" in text, "an artefact without the paper's number is not called Table 1"

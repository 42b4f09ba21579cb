"""Every committed LaTeX table compiles: on its own, and dropped into papers of one and two columns. Needs pdflatex."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted([*(ROOT / "results" / "tables").glob("*.tex"), ROOT / "results" / "claims.tex"])
pytestmark = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="NO LATEX TESTS: pdflatex is not installed (.ci/documents.sh)"
)
PAPER = r"""\documentclass[%s]{article}
\usepackage{booktabs,longtable,graphicx,xcolor}
\begin{document}
Before.
%s
After.
\end{document}
"""


def _compile(source: Path, out: Path) -> str:
    """The log; the compilation must succeed without a box that is too wide."""
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", f"-output-directory={out}", str(source)],
        cwd=out, capture_output=True, text=True, errors="replace", timeout=60, check=False,
    )  # fmt: skip
    errors = "\n".join(line for line in done.stdout.splitlines() if line.startswith(("!", "l.")))
    assert done.returncode == 0, f"{source.name}: {errors}"
    assert "Overfull" not in done.stdout, [line for line in done.stdout.splitlines() if "Overfull" in line]
    assert (out / f"{source.stem}.pdf").stat().st_size > 1000
    return done.stdout


def test_each_table_compiles_on_its_own(tmp_path: Path) -> None:
    assert len(TABLES) > 8
    for table in TABLES:
        assert "[U+" not in table.read_text(encoding="utf-8"), f"{table.name}: nora.reporting.latex spells it not"
        _compile(table, tmp_path)


@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
def test_all_tables_drop_into_a_paper(columns: str, tmp_path: Path) -> None:
    # A page each: sixty floats and no text between them are more than LaTeX holds back.
    inputs = "\n".join(f"Of \\verb|{table.stem}|.\n\n\\input{{{table}}}\n\\clearpage" for table in TABLES)
    paper = tmp_path / "paper.tex"
    paper.write_text(PAPER % (columns, inputs), encoding="utf-8")
    _compile(paper, tmp_path)
    numbers = (tmp_path / "paper.aux").read_text(encoding="utf-8").count(r"\@writefile{lot}")
    blocks = sum(table.read_text(encoding="utf-8").count(r"\caption{") for table in TABLES)
    assert numbers == blocks, "every block of every table is in the list of tables"

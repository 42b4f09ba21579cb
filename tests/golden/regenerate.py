"""Writes the golden tables anew from made-up records: ``python tests/golden/regenerate.py``; read the diff."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = ("md", "tex", "csv")


def golden_texts(checkout: Path) -> dict[str, str]:
    """suffix → text of Table 2 at mini scale: two tasks, two seeds, one method's record missing, ids replaced."""
    from nora.reporting.collation import build_artefact
    from nora.reporting.document import to_csv, to_markdown
    from nora.reporting.latex import to_latex
    from nora.tables.methods import load_table
    from synthetic import complete

    table = load_table(checkout, "table2", ["scale=mini", "seed=0,1", "task=cb,rte"])
    records = {
        k: r
        for k, r in complete(table).items()
        if (r.spec["method"]["name"], r.spec["task"]["name"]) != ("olora", "rte")
    }
    document = build_artefact(table, records)
    texts = (to_markdown(document), to_latex(document), to_csv(document))
    return {s: re.sub(r"\b[0-9a-f]{16}\b", "<id>", text) for s, text in zip(SUFFIXES, texts, strict=True)}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    for suffix, text in golden_texts(ROOT).items():
        (ROOT / "tests" / "golden" / f"table2.mini.{suffix}").write_text(text, encoding="utf-8")

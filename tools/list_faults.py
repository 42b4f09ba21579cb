"""Writes README's table of faults from results/bench/chaos.json: ``python tools/list_faults.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- made by tools/list_faults.py -->", "<!-- end of faults -->"


def block(result: dict[str, Any]) -> str:
    """A fault per line with how many trials there were and how many held; what was not run, by name."""
    rows = [("fault", "trials", "held")]
    parts = {name: part for name, part in result.items() if name not in ("skipped", "not run")}
    rows += [(name, f"{part['trials']:,}", f"{part['passed']:,}") for name, part in sorted(parts.items())]
    rows += [(name, "not run", "") for name in sorted({**result["skipped"], **result["not run"]})]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {a:{widths[0]}} | {b:>{widths[1]}} | {c:>{widths[2]}} |" for a, b, c in rows]
    rule = f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 1)}:|{'-' * (widths[2] + 1)}:|"
    return "\n".join([lines[0], rule, *lines[1:]])


def written(text: str) -> str:
    """README with the table as the committed counts are."""
    result = json.loads((ROOT / "results" / "bench" / "chaos.json").read_text(encoding="utf-8"))["result"]
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{block(result)}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")

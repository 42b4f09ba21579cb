"""Writes README's list of starts, variants and optimisers from their folders: ``python tools/list_methods.py``."""

from __future__ import annotations

import ast
from pathlib import Path

from nora import starts

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- made by tools/list_methods.py -->", "<!-- end -->"
_AXES = {
    "inits": "`method.init`: how the adapter starts",
    "variants": "`method.variant`: what it is (null: LoRA)",
    "optimizers": "`method.optimizer`: how it steps (null: AdamW)",
}


def block() -> str:
    """The list: a choice per line with what its file says of itself, and whether it moves the base or needs rows."""
    lines = []
    for axis, heading in _AXES.items():
        lines += [f"**{heading}**", ""]
        for name, path in starts.files(axis).items():
            said = starts.said(axis, name)
            first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0].rstrip(".")
            marks = ["moves the base"] * bool(said.get("MOVES_BASE")) + ["takes training rows"] * ("DATA" in said)
            mark = f" ({', '.join(marks)})" if marks else ""
            lines.append(f"- `{name}`: {first}{mark}.")
        lines.append("")
    return "\n".join(lines)


def written(text: str) -> str:
    """README with the list as the folders are now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")

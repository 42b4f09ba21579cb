"""A rendered table as data, and its three texts: Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, StrictUndefined


@dataclass(frozen=True)
class Entry:
    """One cell: what a person reads, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One row; ``rule_above`` sets it apart from the rows before it."""

    label: str
    entries: tuple[Entry, ...]
    rule_above: bool = False


@dataclass(frozen=True)
class Block:
    """A grid with a heading of its own."""

    heading: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Document:
    """Everything of one table: blocks to read, rows for machines."""

    name: str
    title: str
    banner: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    csv_header: tuple[str, ...] = ()
    csv_rows: tuple[tuple[object, ...], ...] = field(default=())
    files: tuple[tuple[Path, str], ...] = ()
    """Further text files that follow from the same records."""


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def to_markdown(document: Document) -> str:
    """The table for reading."""
    parts = [f"# {document.title}", ""]
    if document.banner:
        parts += [f"**{document.banner}**", ""]
    for block in document.blocks:
        if block.heading:
            parts += [f"## {block.heading}", ""]
        rows = [["", *block.columns]]
        for line in block.lines:
            if line.rule_above:
                rows.append(["—"] * (len(block.columns) + 1))
            rows.append([line.label, *(f"**{e.text}**" if e.best else e.text for e in line.entries)])
        parts += [*_grid(rows), ""]
    parts += [f"- {note}" for note in document.notes]
    return "\n".join(parts).rstrip() + "\n"


_LATEX = """\
% {{ document.name }}, made by `nora collate`: do not edit.
{%- for block in document.blocks %}
\\begin{table}[t]
\\centering
\\caption{ {{- document.title | tex }}{% if block.heading %}: {{ block.heading | tex }}{% endif %}.
{%- if document.banner %} \\textbf{ {{- document.banner | tex -}} }{% endif -%} }
\\begin{tabular}{l{{ 'c' * block.columns | length }}}
\\toprule
{% for column in block.columns %} & {{ column | tex }}{% endfor %} \\\\
\\midrule
{%- for line in block.lines %}
{%- if line.rule_above %}
\\midrule
{%- endif %}
{{ line.label | tex }}{% for entry in line.entries %} & {{ entry | tex_entry }}{% endfor %} \\\\
{%- endfor %}
\\bottomrule
\\end{tabular}
{%- if loop.last %}
{%- for note in document.notes %}
\\par{\\footnotesize {{ note | tex }}}
{%- endfor %}
{%- endif %}
\\end{table}
{%- endfor %}
"""

_TEX_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "ξ": r"$\xi$",
    "λ": r"$\lambda$",
    "Δ": r"$\Delta$",
    "−": r"$-$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "‡": r"$^\ddagger$",
    "†": r"$^\dagger$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "…": r"\ldots{}",
}


def escape_latex(text: str) -> str:
    """``text`` as LaTeX prints it."""
    return "".join(_TEX_CHARACTERS.get(character, character) for character in text)


def _latex_entry(entry: Entry) -> str:
    text = escape_latex(entry.text)
    return f"\\textbf{{{text}}}" if entry.best else text


def to_latex(document: Document) -> str:
    """Tables (booktabs) that drop into a paper."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["tex"] = escape_latex
    environment.filters["tex_entry"] = _latex_entry
    return environment.from_string(_LATEX).render(document=document)


def to_csv(document: Document) -> str:
    """One line per cell, for machines."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(document.csv_header)
    writer.writerows(document.csv_rows)
    return buffer.getvalue()

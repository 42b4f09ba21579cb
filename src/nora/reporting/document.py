"""A table as data, and two of its texts: Markdown for reading, CSV for machines. LaTeX is in latex.py."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One cell: what a person reads, whether it is the best of its column, and where it comes from."""

    text: str
    best: bool = False
    detail: str = ""
    """Set small beside the text: the paper's value, the difference, n."""
    runs: tuple[str, ...] = ()
    """Ids of the runs behind the text, wanted or there."""
    grey: bool = False
    """It says nothing: its column is at chance."""

    @property
    def plain(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


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
    folder: str = "tables"
    """Where its texts are kept below results/."""


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows, the first of them the heading, as a Markdown table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _entry(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.best else entry.text
    return f"{text} ({entry.detail})" if entry.detail else text


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
            rows.append([line.label, *(_entry(e) for e in line.entries)])
        parts += [*grid(rows), ""]
    parts += [f"- {note}" for note in document.notes]
    return "\n".join(parts).rstrip() + "\n"


def as_text_cell(value: object) -> object:
    """A CSV cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe before it. Nor
    does a carriage return, which Python's writer leaves without quotes, begin another row."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    if value[:1] not in ("=", "+", "-", "@", "\t", "\n") or not value:
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A header and rows as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(as_text_cell, header))
    writer.writerows([as_text_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def to_csv(document: Document) -> str:
    """One line per cell, for machines."""
    return csv_text(document.csv_header, document.csv_rows)


_MEANINGS = {
    "missing": "no run yet; (2/3): two of its three runs are there",
    "waits": "its settings follow from another method's search, which is not complete",
    "diverged": "a loss or gradient was not finite and the run ended there (1/3: one of three runs)",
    "damaged": "a record that is not what its hash says, of another schema, or a copy",
    "newer": "written by a newer version of this program, which this one does not read",
    "stale": "made with an older version of the protocol",
    "failed": "ended with an error",
    "interrupted": "stopped before its end",
    "running": "under way",
}


def explained(document: Document) -> Document:
    """The document with a note on the state words in its cells; as it is where there are none."""
    first = {entry.text.split(" ")[0] for block in document.blocks for line in block.lines for entry in line.entries}
    used = [f"“{word}”: {meaning}" for word, meaning in _MEANINGS.items() if word in first]
    return replace(document, notes=(*document.notes, "; ".join(used) + ".")) if used else document

"""Target → files under results/: one path for every table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nora.collate import methods_by_tasks, tuning
from nora.collate.document import Document, to_csv, to_latex, to_markdown
from nora.runs.errors import UserError
from nora.runs.files import write_atomic
from nora.runs.record import Record
from nora.tables.table import Table

_LAYOUTS = {"methods_by_tasks": methods_by_tasks.build, "tuning": tuning.build}


def build_document(table: Table, records: Mapping[str, Record], *, checkout: Path) -> Document:
    """The document of a table by its layout."""
    if table.file.layout not in _LAYOUTS:
        raise UserError(
            f"conf/table/{table.name}.yaml: given layout {table.file.layout!r}, allowed {', '.join(_LAYOUTS)}"
        )
    return _LAYOUTS[table.file.layout](table, records, checkout=checkout)


def write_document(document: Document, folder: Path) -> list[Path]:
    """Writes md, tex and csv; unchanged files are left alone. Returns their paths."""
    texts = (("md", to_markdown(document)), ("tex", to_latex(document)), ("csv", to_csv(document)))
    outputs = [(folder / f"{document.name}.{suffix}", text) for suffix, text in texts]
    paths = []
    for path, text in [*outputs, *document.files]:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)
        paths.append(path)
    return paths

"""Target → files under results/: one path for every table and figure."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from nora.collate.document import Document, to_csv, to_markdown
from nora.collate.figures import Figure, figure_texts, write_figure
from nora.collate.latex import to_latex
from nora.collate.state_words import explained
from nora.runs.errors import UserError
from nora.runs.files import write_atomic
from nora.runs.record import Record
from nora.tables.targets import Target

# A layout is a module of this floor with ``build(table, records, *, checkout)``; imported when it is needed.
_LAYOUTS = (
    "methods_by_tasks", "models_by_sets", "tuning", "hyperparameters", "singular_values", "convergence", "rates",
    "deployment", "costs",
    "subject_losses", "subject_settings", "drawn_pictures", "training_pictures", "loss_curves",
)  # fmt: skip


def build(table: Target, records: Mapping[str, Record], *, checkout: Path) -> Document | Figure:
    """The artefact of a table by its layout."""
    layout = table.file.layout
    if layout not in _LAYOUTS:
        raise UserError(f"conf/table/{table.name}.yaml: given layout {layout!r}, allowed {', '.join(_LAYOUTS)}")
    module = importlib.import_module(f"nora.collate.{layout}")
    try:
        artefact: Document | Figure = module.build(table, records, checkout=checkout)
    except KeyError as error:  # a record of this spec and version that holds less than the layout reads
        raise UserError(f"{table.name}: a record behind it has no {error}, which layout {layout} reads") from error
    return explained(artefact) if isinstance(artefact, Document) else artefact


def artefact_texts(artefact: Document | Figure, results: Path) -> list[tuple[Path, str]]:
    """The artefact's text files below ``results`` and what is in them; of a figure its numbers and its caption."""
    if isinstance(artefact, Figure):
        return [(results / "figures" / f"{artefact.name}.{suffix}", t) for suffix, t in figure_texts(artefact).items()]
    texts = (("md", to_markdown(artefact)), ("tex", to_latex(artefact)), ("csv", to_csv(artefact)))
    return [*((results / "tables" / f"{artefact.name}.{suffix}", t) for suffix, t in texts), *artefact.files]


def write(artefact: Document | Figure, results: Path) -> list[Path]:
    """Writes the artefact's files below ``results``; unchanged files are left alone. Returns their paths."""
    if isinstance(artefact, Figure):
        return write_figure(artefact, results / "figures")
    outputs = artefact_texts(artefact, results)
    for path, text in outputs:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)
    return [path for path, _ in outputs]


def summary(artefact: Document | Figure) -> str:
    """What is printed for a person after collation."""
    if isinstance(artefact, Figure):
        return "\n".join([artefact.title, *filter(None, [artefact.banner]), *artefact.notes])
    return to_markdown(artefact)

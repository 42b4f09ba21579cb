"""Are the artefacts under results/ what the records give? Pictures are taken as they are, by their numbers.

A committed choice of hyper-parameters (conf/chosen) is an input of runs and may be older than the newest records.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nora.collate.artefacts import artefact_texts, build
from nora.collate.collation import REPORT, report_text
from nora.collate.document import Document
from nora.collate.figures import Figure
from nora.runs.snapshot import Snapshot
from nora.tables.targets import Target


def _differing(texts: Sequence[tuple[Path, str]], results: Path, again: str) -> list[str]:
    return [
        f"{path}: not what the records give; `nora collate {again}` writes it again"
        for path, text in texts
        if path.is_relative_to(results) and path.is_file() and path.read_text(encoding="utf-8") != text
    ]


def audit(target: Target, snapshot: Snapshot, results: Path, *, checkout: Path) -> list[str]:
    """One line per file of the target that is not what the records give; a file that was not made is no problem."""
    artefact = build(target, snapshot.records_alone(), checkout=checkout)
    return _differing(artefact_texts(artefact, results), results, target.name)


def audit_all(targets: Sequence[Target], snapshot: Snapshot, results: Path, *, checkout: Path) -> list[str]:
    """The same for every artefact and the report."""
    problems: list[str] = []

    def place(artefact: Document | Figure) -> bytes:
        problems.extend(_differing(artefact_texts(artefact, results), results, "all"))
        png = results / "figures" / f"{artefact.name}.png"
        return png.read_bytes() if isinstance(artefact, Figure) and png.is_file() else b""

    text = report_text(targets, snapshot.records_alone(), results, checkout=checkout, place=place)
    return problems + _differing([(results / REPORT, text)], results, "all")

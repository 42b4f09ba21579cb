"""Are the artefacts under results/ what the records give? Text only: pictures follow from the same numbers."""

from __future__ import annotations

from pathlib import Path

from nora.collate.artefacts import artefact_texts, build
from nora.runs.snapshot import Snapshot
from nora.tables.targets import Target


def audit(target: Target, snapshot: Snapshot, results: Path, *, checkout: Path) -> list[str]:
    """One line per file of the target that is not what the records give; a file that was not made is no problem."""
    problems = []
    for path, text in artefact_texts(build(target, snapshot, checkout=checkout), results):
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            problems.append(f"{path}: not what the records give; `nora collate {target.name}` writes it again")
    return problems

"""What stands where a number is not: each word that a table uses is said in its notes."""

from __future__ import annotations

from dataclasses import replace

from nora.collate.document import Document

_MEANINGS = {
    "missing": "no run yet; (2/3): two of its three runs are there",
    "waits": "its settings follow from another method's search, which is not complete",
    "diverged": "a loss or gradient was not finite and the run ended there (1/3: one of three runs)",
    "damaged": "a record that is not what its hash says, of another schema, or a copy",
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

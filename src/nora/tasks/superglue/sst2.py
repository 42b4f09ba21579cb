"""SST-2 (GLUE): is a film-review sentence positive?

    {"sentence": "hide new secretions from the parental units ", "label": 0}
    → "hide new secretions from the parental units It was" + " terrible"

The sentence carries a trailing blank; the answers start with one.
"""

from __future__ import annotations

from nora.tasks.example import Example, HubSource, Row, labelled, require_fields

LABEL = "SST-2"
SOURCE = HubSource("nyu-mll/glue", "sst2", "train", "validation", 67349, 872)
FIELDS = ("sentence", "label")
LOSS = "classification"
TOKENS, OPTIONS = 30, 2  # rough means of the real rows: prompt and one candidate; candidates
METRIC = "accuracy"
CANDIDATES = (" terrible", " great")


def build(row: Row) -> Example:
    require_fields(row, FIELDS, task="sst2")
    return labelled(f"{row['sentence'].strip()} It was", CANDIDATES, row["label"], task="sst2")

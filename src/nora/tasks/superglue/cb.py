"""CommitmentBank (SuperGLUE): does the premise commit its author to the hypothesis?

    {"premise": "It was a complex language. …", "hypothesis": "the language was peeled down", "label": 0}
    → 'Suppose It was … Can we infer that "the language was peeled down"? Yes, No, or Maybe?\n' + "Yes"

Labels: 0 entailment, 1 contradiction, 2 neutral. 250 training rows in all: dev takes 100 of them.
"""

from __future__ import annotations

from nora.tasks.example import Example, HubSource, Row, labelled, require_fields

LABEL = "CB"
SOURCE = HubSource("aps/super_glue", "cb", "train", "validation", 250, 56)
FIELDS = ("premise", "hypothesis", "label")
LOSS = "classification"
TOKENS, OPTIONS = 110, 3  # rough means of the real rows: prompt and one candidate; candidates
METRIC = "accuracy"
CANDIDATES = ("Yes", "No", "Maybe")


def build(row: Row) -> Example:
    require_fields(row, FIELDS, task="cb")
    prompt = f'Suppose {row["premise"]} Can we infer that "{row["hypothesis"]}"? Yes, No, or Maybe?\n'
    return labelled(prompt, CANDIDATES, row["label"], task="cb")

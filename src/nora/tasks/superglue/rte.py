"""RTE (SuperGLUE): does the premise entail the hypothesis?

    {"premise": "No Weapons of Mass Destruction Found in Iraq Yet.", "hypothesis": "Weapons of Mass …", "label": 1}
    → 'No Weapons … Yet.\nDoes this mean that "Weapons of Mass …" is true? Yes or No?\n' + "No"

Labels: 0 entailment, 1 not entailment.
"""

from __future__ import annotations

from nora.tasks.example import Example, HubSource, Row, labelled, require_fields

LABEL = "RTE"
SOURCE = HubSource("aps/super_glue", "rte", "train", "validation", 2490, 277)
FIELDS = ("premise", "hypothesis", "label")
LOSS = "classification"
TOKENS, OPTIONS = 90, 2  # rough means of the real rows: prompt and one candidate; candidates
METRIC = "accuracy"
CANDIDATES = ("Yes", "No")


def build(row: Row) -> Example:
    require_fields(row, FIELDS, task="rte")
    prompt = f'{row["premise"]}\nDoes this mean that "{row["hypothesis"]}" is true? Yes or No?\n'
    return labelled(prompt, CANDIDATES, row["label"], task="rte")

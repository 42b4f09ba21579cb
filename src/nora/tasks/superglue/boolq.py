"""BoolQ: is the answer to a search query yes, given a Wikipedia paragraph?

    {"question": "do iran and afghanistan speak the same language", "passage": "Persian language -- …", "label": 1}
    → "Persian language -- … Do iran and afghanistan speak the same language?\n" + "Yes"

The Hub's google/boolq says `answer` (a bool), SuperGLUE's copy `label` (0/1); both are read.
"""

from __future__ import annotations

from nora.tasks.example import Example, HubSource, Row, labelled, require_fields

LABEL = "BoolQ"
SOURCE = HubSource("google/boolq", None, "train", "validation", 9427, 3270)
FIELDS = ("question", "passage")
LOSS = "classification"
TOKENS, OPTIONS = 160, 2  # rough means of the real rows: prompt and one candidate; candidates
METRIC = "accuracy"
CANDIDATES = ("Yes", "No")


def build(row: Row) -> Example:
    require_fields(row, (*FIELDS, "answer" if "answer" in row else "label"), task="boolq")
    answer = row["answer"] if "answer" in row else row["label"]
    question = row["question"]
    if not question.endswith("?"):
        question += "?"
    question = question[:1].upper() + question[1:]
    label = {0: 1, 1: 0}.get(answer, answer)  # Yes, the first candidate, is what "true" says
    return labelled(f"{row['passage']} {question}\n", CANDIDATES, label, task="boolq")

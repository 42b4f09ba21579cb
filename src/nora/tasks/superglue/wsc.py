"""Winograd Schema Challenge (SuperGLUE): does the pronoun refer to the noun?

    {"text": "Mark told Pete … He should have been …", "span1_text": "Mark", "span2_text": "He", "label": 0}
    → '… skeptical.\nIn the previous sentence, does the pronoun "he" refer to Mark? Yes or No?\n' + "No"

The protocol reads `wsc.fixed`; the shipped slice is raw `wsc` (same rows, a few spans differ). 554 training rows:
500 go to dev at the paper's sizes, 54 train.
"""

from __future__ import annotations

from nora.tasks.example import Example, HubSource, Row, labelled, require_fields

LABEL = "WSC"
SOURCE = HubSource("aps/super_glue", "wsc.fixed", "train", "validation", 554, 104)
FIELDS = ("text", "span1_text", "span2_text", "label")
LOSS = "classification"
TOKENS, OPTIONS = 70, 2  # rough means of the real rows: prompt and one candidate; candidates
METRIC = "accuracy"
CANDIDATES = ("No", "Yes")


def build(row: Row) -> Example:
    require_fields(row, FIELDS, task="wsc")
    prompt = (
        f'{row["text"]}\nIn the previous sentence, does the pronoun "{row["span2_text"].lower()}" '
        f"refer to {row['span1_text']}? Yes or No?\n"
    )
    return labelled(prompt, CANDIDATES, row["label"], task="wsc")

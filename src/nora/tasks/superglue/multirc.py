"""MultiRC (SuperGLUE), one row per (question, answer): is this answer right?

{"paragraph": "While this process …", "question": "What did …?", "answer": "Children, …", "label": 0}
→ 'While … \nQuestion: What did …?\nI found this answer "Children, …". Is that correct? Yes or No?\n' + "No"
"""

from __future__ import annotations

from nora.tasks.example import Example, HubSource, Row, labelled, require_fields

LABEL = "MultiRC"
SOURCE = HubSource("aps/super_glue", "multirc", "train", "validation", 27243, 4848)
FIELDS = ("paragraph", "question", "answer", "label")
LOSS = "classification"
TOKENS, OPTIONS = 380, 2  # rough means of the real rows: prompt and one candidate; candidates
METRIC = "accuracy"
CANDIDATES = ("No", "Yes")


def build(row: Row) -> Example:
    require_fields(row, FIELDS, task="multirc")
    prompt = (
        f"{row['paragraph']}\nQuestion: {row['question']}\n"
        f'I found this answer "{row["answer"]}". Is that correct? Yes or No?\n'
    )
    return labelled(prompt, CANDIDATES, row["label"], task="multirc")

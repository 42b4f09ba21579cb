"""SQuAD v1.1: a span of the paragraph, generated.

    {"title": "Super_Bowl_50", "context": "…", "question": "Which …?", "answers": {"text": ["Denver Broncos", …]}}
    → "Title: …\nContext: …\nQuestion: …\nAnswer:" + " Denver Broncos\n"

The closing newline is part of the training target: it is where generation stops.
"""

from __future__ import annotations

from nora.tasks.example import Example, HubSource, Row, require_fields

LABEL = "SQuAD"
SOURCE = HubSource("rajpurkar/squad", None, "train", "validation", 87599, 10570)
FIELDS = ("title", "context", "question", "answers")
LOSS = "option_lm"
TOKENS, OPTIONS = 200, 1  # rough means of the real rows: prompt and one candidate; candidates
METRIC = "f1"
MAX_NEW_TOKENS = 50
STOP = "\n"


def build(row: Row) -> Example:
    require_fields(row, FIELDS, task="squad")
    answers = list(row["answers"]["text"])
    if not answers:
        raise ValueError(f"squad: given no answer for {row['question']!r}, required at least one")
    return Example(
        prompt=f"Title: {row['title']}\nContext: {row['context']}\nQuestion: {row['question'].strip()}\nAnswer:",
        candidates=(f" {answers[0]}\n",),
        correct=(0,),
        references=tuple(answers),
    )

"""ReCoRD (SuperGLUE): which entity of a news text fills the gap of a query about it?

    {"passage": "By Hamish …\n@highlight\nChelsea …", "query": "… @placeholder …", "entities": […], "answers": […]}
    → "By Hamish Mackay …\n- Chelsea …\n-" + " … Nik Kapun …"

The candidates are whole sentences, the query with each entity put in; any of `answers` is right; the first trains.
"""

from __future__ import annotations

from nora.tasks.example import Example, HubSource, Row, require_fields

LABEL = "ReCoRD"
SOURCE = HubSource("aps/super_glue", "record", "train", "validation", 100730, 10000)
FIELDS = ("passage", "query", "entities", "answers")
LOSS = "option_lm"
TOKENS, OPTIONS = 300, 20  # rough means of the real rows: prompt and one candidate; candidates
METRIC = "accuracy"


def build(row: Row) -> Example:
    require_fields(row, FIELDS, task="record")
    entities, answers = list(row["entities"]), list(row["answers"])
    if not answers or answers[0] not in entities:
        raise ValueError(f"record: given the answers {answers}, required the first among the entities {entities}")
    passage = row["passage"].replace("@highlight\n", "- ")
    correct = [entities.index(answers[0])]
    correct += [i for i, entity in enumerate(entities) if entity in answers and i not in correct]
    return Example(
        prompt=f"{passage}\n-",
        candidates=tuple(" " + row["query"].replace("@placeholder", entity) for entity in entities),
        correct=tuple(correct),
    )

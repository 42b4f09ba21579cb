"""Prompts of real shipped rows, byte for byte.

The expected strings were typed from the templates of MeZO's few-shot script (princeton-nlp/MeZO, large_models,
templates.py), not produced by the code under test. Blanks at the ends are visible: every string is in quotes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nora import tasks

GOLDEN = [
    ("sst2", "train", 0, "hide new secretions from the parental units It was", (" terrible", " great"), 0),
    ("sst2", "train", 1, "contains no wit , only labored gags It was", (" terrible", " great"), 0),
    (
        "sst2",
        "validation",
        2,
        "allows us to hope that nolan is poised to embark a major career as a commercial yet inventive filmmaker . "
        "It was",
        (" terrible", " great"),
        1,
    ),
    (
        "cb",
        "train",
        0,
        "Suppose It was a complex language. Not written down but handed down. One might say it was peeled down. "
        'Can we infer that "the language was peeled down"? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        0,
    ),
    (
        "cb",
        "validation",
        0,
        "Suppose Valence the void-brain, Valence the virtuous valet. Why couldn't the figger choose his own portion "
        "of titanic anatomy to shaft? Did he think he was helping? "
        'Can we infer that "Valence was helping"? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        1,
    ),
    (
        "cb",
        "validation",
        1,
        "Suppose ``Who knows? The point is, do we go with it or not?'' Do we assume there is a shipment? "
        'Can we infer that "there is a shipment"? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        2,
    ),
    (
        "rte",
        "train",
        0,
        "No Weapons of Mass Destruction Found in Iraq Yet.\n"
        'Does this mean that "Weapons of Mass Destruction Found in Iraq." is true? Yes or No?\n',
        ("Yes", "No"),
        1,
    ),
    (
        "rte",
        "train",
        12,
        'Valero Energy Corp., on Monday, said it found "extensive" additional damage at its 250,000-barrel-per-day '
        "Port Arthur refinery.\n"
        'Does this mean that "Valero Energy Corp. produces 250,000 barrels per day." is true? Yes or No?\n',
        ("Yes", "No"),
        0,
    ),
]


def _row(checkout: Path, task: str, split: str, index: int) -> dict[str, object]:
    lines = (checkout / "data" / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    row: dict[str, object] = json.loads(lines[index])
    return row


@pytest.mark.parametrize("task, split, index, prompt, candidates, gold", GOLDEN)
def test_prompt(
    checkout: Path, task: str, split: str, index: int, prompt: str, candidates: tuple[str, ...], gold: int
) -> None:
    example = tasks.load("superglue", task).build(_row(checkout, task, split, index))
    assert example.prompt == prompt
    assert example.candidates == candidates
    assert (example.gold, example.correct) == (gold, (gold,))


@pytest.mark.parametrize("name", ["sst2", "cb", "rte"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_shipped_row_builds_and_each_class_occurs(checkout: Path, name: str, split: str) -> None:
    task = tasks.load("superglue", name)
    lines = (checkout / "data" / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [task.build(json.loads(line)) for line in lines]
    assert {e.gold for e in examples} == set(range(len(task.CANDIDATES)))
    assert all(e.prompt and not e.prompt.endswith(" ") for e in examples)


@pytest.mark.parametrize("name", ["sst2", "cb", "rte"])
def test_a_missing_field_is_named(checkout: Path, name: str) -> None:
    task = tasks.load("superglue", name)
    for field in task.FIELDS:
        row = _row(checkout, name, "train", 0)
        del row[field]
        with pytest.raises(ValueError, match=f"^{name}: a row lacks {field}; required"):
            task.build(row)


@pytest.mark.parametrize("name", ["sst2", "cb", "rte"])
@pytest.mark.parametrize("label", [-1, 7, None, "0", 0.5])
def test_a_label_outside_the_classes_is_named(checkout: Path, name: str, label: object) -> None:
    with pytest.raises(ValueError, match=f"{name}: given label {label!r}, required 0 to"):
        tasks.load("superglue", name).build({**_row(checkout, name, "train", 0), "label": label})


def test_an_unknown_task_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="task: given 'sst', required one of .*sst2"):
        tasks.load("superglue", "sst")


def test_split_sizes_are_those_of_the_published_sets() -> None:
    """GLUE and SuperGLUE papers; RTE's training split has 2,490 rows, CB's 250."""
    sizes = {n: tasks.load("superglue", n).SOURCE for n in ("sst2", "cb", "rte")}
    assert {n: (s.num_train_rows, s.num_test_rows) for n, s in sizes.items()} == {
        "sst2": (67349, 872),
        "cb": (250, 56),
        "rte": (2490, 277),
    }

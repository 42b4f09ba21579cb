"""What a prediction is worth: accuracy of a choice, token F1 of a generated answer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from nora.tasks.example import Row


def normalize_answer(text: str) -> list[str]:
    """SQuAD's official normalisation: lower case, no punctuation, no articles, split at blanks."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """The best token F1 over the references, 0 to 1."""
    return max(_pair_f1(normalize_answer(prediction), normalize_answer(reference)) for reference in references)


def _pair_f1(given: list[str], gold: list[str]) -> float:
    common = sum((Counter(given) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(given), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def score(metric: str, predictions: Sequence[Row]) -> float:
    """The metric over stored predictions: ``prediction`` beside ``correct`` (accuracy), ``references`` (f1), or
    ``answer`` and ``set`` (mean_accuracy: the unweighted mean over the sets). macro_f1: of a choice."""
    if metric == "accuracy":
        return sum(row["prediction"] in row["correct"] for row in predictions) / len(predictions)
    if metric == "macro_f1":
        return macro_f1(predictions)
    if metric == "f1":
        return sum(token_f1(row["prediction"], row["references"]) for row in predictions) / len(predictions)
    if metric == "mean_accuracy":
        return sum(accuracy for accuracy, _ in set_accuracies(predictions).values()) / len(set_accuracies(predictions))
    raise ValueError(f"metric: given {metric!r}, required 'accuracy', 'macro_f1', 'f1' or 'mean_accuracy'")


def macro_f1(predictions: Sequence[Row]) -> float:
    """The unweighted mean of the classes' F1 over those that are right or predicted anywhere; 0 for a class without a
    hit."""
    pairs = [(row["prediction"], row["correct"][0]) for row in predictions]
    counts = [Counter(p for p, _ in pairs), Counter(c for _, c in pairs), Counter(p for p, c in pairs if p == c)]
    classes = counts[0].keys() | counts[1].keys()
    return sum(2 * counts[2][k] / (counts[0][k] + counts[1][k]) for k in sorted(classes)) / len(classes)


def set_accuracies(predictions: Sequence[Row]) -> dict[str, tuple[float, int]]:
    """set → (share of right answers, number of rows), in the order the sets come."""
    counts: dict[str, list[bool]] = {}
    for row in predictions:
        counts.setdefault(row["set"], []).append(row["prediction"] == row["answer"])
    return {name: (sum(right) / len(right), len(right)) for name, right in counts.items()}

"""Token F1 against an independent writing of SQuAD's official script, and accuracy by hand."""

from __future__ import annotations

import collections
import re
import string

from hypothesis import given
from hypothesis import strategies as st

from nora.tasks.metrics import normalize_answer, score, token_f1


def official(prediction: str, truth: str) -> float:
    """evaluate-v1.1.py, written out: lower, punctuation out, articles to a blank, blanks folded."""

    def normal(text: str) -> str:
        lowered = text.lower()
        bare = "".join(c for c in lowered if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())

    one, other = normal(prediction).split(), normal(truth).split()
    same = sum((collections.Counter(one) & collections.Counter(other)).values())
    if same == 0:
        return 0.0
    precision, recall = 1.0 * same / len(one), 1.0 * same / len(other)
    return (2 * precision * recall) / (precision + recall)


WORDS = st.lists(
    st.sampled_from(["The", "a", "an", "cat", "Cat's", "sat,", "23", "years", "-", "é", "an."]), max_size=6
)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_f1_is_the_official_one_and_the_best_over_references(prediction: list[str], truths: list[list[str]]) -> None:
    given_text, references = " ".join(prediction), [" ".join(t) for t in truths]
    assert token_f1(given_text, references) == max(official(given_text, r) for r in references)


def test_normalisation_by_example() -> None:
    assert normalize_answer("The  U.S. Navy's an-swer") == ["us", "navys", "answer"]
    assert token_f1("23 years!", ["twenty-three", "the 23 years"]) == 1.0
    assert token_f1("", ["x"]) == 0.0


def test_scores_of_predictions() -> None:
    choices = [{"prediction": 0, "correct": [0]}, {"prediction": 1, "correct": [0, 2]}]
    texts = [{"prediction": "a cat", "references": ["cat"]}, {"prediction": "dog", "references": ["the cat"]}]
    assert score("accuracy", choices) == 0.5 and score("f1", texts) == 0.5

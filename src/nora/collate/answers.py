"""What a table of generated answers says below itself: how sure a share of answers is, how many are no answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nora.collate import labels
from nora.runs.record import Record


def binomial_error(accuracy: float, n: int) -> float:
    """Standard error of a share of n independent answers."""
    return math.sqrt(accuracy * (1 - accuracy) / n)


def answer_notes(done: Sequence[Record]) -> list[str]:
    """Of finished runs that answered sets of questions: the largest standard error, the unanswered ones of each set."""
    scores = [(name, s) for r in done for name, s in r.metrics["test"].get("sets", {}).items()]
    if not scores:
        return []
    sizes = {s["n"] for _, s in scores}
    rows = f"{min(sizes):,}" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    names = list(dict.fromkeys(name for name, _ in scores))
    missed = {name: sum(s["unanswered"] for other, s in scores if other == name) for name in names}
    by_set = ", ".join(f"{labels.task(name)} {count}" for name, count in missed.items() if count)
    where = f" ({by_set})" if by_set and len(names) > 1 else ""
    return [
        f"{rows} questions per set: a single run's accuracy has a binomial standard error of up to "
        f"{100 * binomial_error(0.5, min(sizes)):.1f} points{' on the smallest set' if len(names) > 1 else ''}.",
        f"{sum(missed.values()):,} of {sum(s['n'] for _, s in scores):,} answers match no pattern of their set{where}; "
        "they count as wrong.",
    ]

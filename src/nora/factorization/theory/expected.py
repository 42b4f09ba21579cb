"""The committed verdicts. A run that finds another one fails."""

from __future__ import annotations

from nora.factorization.theory.claim import Verdict

HOLDS, CONDITIONAL, REFUTED, FREQUENCY = Verdict.HOLDS, Verdict.CONDITIONAL, Verdict.REFUTED, Verdict.FREQUENCY

# In the paper's order.
EXPECTED: dict[str, Verdict] = {
    "Definition 1": HOLDS,
    "Definition 2": HOLDS,
    "Theorem 1": CONDITIONAL,
    "Theorem 2": CONDITIONAL,
    "Remark on Theorem 2": REFUTED,
    "Theorem 3": HOLDS,
    "Theorem 4": HOLDS,
    "Theorem 5": CONDITIONAL,
    "Theorem 6": HOLDS,
    "Corollary 1": HOLDS,
    "Lemma 1": FREQUENCY,
    "Lemma 2": CONDITIONAL,
    "Lemma 3": HOLDS,
    "Lemma 4": HOLDS,
    "Lemma 5": CONDITIONAL,
    "Lemma 6": HOLDS,
    "Lemma 7": CONDITIONAL,
    "Lemma 8": HOLDS,
    "Lemma 9": CONDITIONAL,
    "Lemma 10": REFUTED,
    "Lemma 10, corrected": HOLDS,
    "Lemma 11": FREQUENCY,
    "Lemma 12": HOLDS,
    "Lemma 13": HOLDS,
    "Lemma 14": HOLDS,
    "Lemma 15": HOLDS,
    "Lemma 16": HOLDS,
    "Lemma 17": HOLDS,
    "Lemma 18": HOLDS,
    "Lemma 19": FREQUENCY,
    "Equation (12)": HOLDS,
    "Equation (17)": REFUTED,
    "Appendix A.2": HOLDS,
    "Appendix A.3": FREQUENCY,
    "Appendix A.4": HOLDS,
    "Appendix A.5": HOLDS,
}

FREQUENCIES = {"Lemma 1": 0.976, "Lemma 11": 0.999, "Lemma 19": 0.970, "Appendix A.3": 0.984}
# How far a run's frequency may be from the committed one: the draws are seeded, rounding may tip a few of them.
TOLERANCE = 0.02

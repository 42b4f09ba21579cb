"""The ledger of the paper's claims: one row each, tried at random and by an adversarial search, with a verdict.

    rows = run_ledger(progress=print)
    problems = check_expectations(rows)     # empty: every verdict is the committed one

A new claim is a ``Claim`` in the CLAIMS of a file of this folder, and a line in ``expected.py``.
"""

from nora.factorization.theory.core import Claim as Claim
from nora.factorization.theory.core import Finding as Finding
from nora.factorization.theory.core import Row as Row
from nora.factorization.theory.core import Verdict as Verdict
from nora.factorization.theory.ledger import check_expectations as check_expectations
from nora.factorization.theory.ledger import claims as claims
from nora.factorization.theory.ledger import run_ledger as run_ledger

"""What a table's seeds and test rows can show, before anything runs: for ``nora plan``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nora.reporting.inference import seeds_needed, smallest_difference
from nora.reporting.reported import report
from nora.store.record import Record
from nora.tables.methods import Table
from nora.tables.target import AnyTarget

_WANTED = 0.5
"""Points: the smallest improvement the paper calls one (Table 4)."""
_RIGHT, _SHARED = 0.75, 0.5
"""Where nothing has run: the share of right answers, and the correlation of two methods' answers to a question."""


def sensitivity_line(target: AnyTarget, records: Mapping[str, Record]) -> str:
    """The smallest difference of two methods on one column that the seeds find with 80 % power, and the seeds that half
    a point needs; "" for what is no table of methods, or whose test rows are not known."""
    if not isinstance(target, Table):
        return ""
    spread, source = _spread(target, records)
    if spread is None:
        return ""
    n, needed = len(target.seeds), seeds_needed(_WANTED, spread)
    least = smallest_difference(spread, n) if n > 1 else math.inf
    if least <= 100:
        seen = f"smallest difference seen on a column with {n} seeds: {least:.1f} points"
    else:
        seen = f"{'a single seed shows' if n == 1 else f'{n} seeds show'} no difference of methods"
    return f"  {seen} (80 % power, p 0.05); {_WANTED:g} points would need {needed:,} seeds ({source})"


def _spread(table: Table, records: Mapping[str, Record]) -> tuple[float | None, str]:
    """Standard deviation in points of one seed's difference: of the runs that are there, pooled over the methods beside
    the first and the columns; else the binomial one of the test rows."""
    reported, first = report(table, records), table.file.search.first
    variances = []
    for column in table.columns:
        metric = table.book.metric(column)
        found = {
            m: e.values(lambda r, metric=metric: float(r.metrics["test"][metric]))  # type: ignore[misc]
            for m in table.methods
            if (e := reported[m, column]).complete
        }
        base = found.pop(first, None)
        if base is None or base.n < 2:
            continue
        for other in found.values():
            if other is not None:
                gaps = [100 * (a - b) for a, b in zip(other.values, base.values, strict=True)]
                mean = math.fsum(gaps) / len(gaps)
                variances.append(math.fsum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1))
    if variances and (pooled := math.sqrt(math.fsum(variances) / len(variances))):
        return pooled, f"a seed's difference spreads {pooled:.1f} points in {len(variances)} pairs that are there"
    rows = [_rows(table, column) for column in table.columns]
    known = [n for n in rows if n]
    if not known:
        return None, ""
    variance = 2 * _RIGHT * (1 - _RIGHT) * (1 - _SHARED) * math.fsum(1 / n for n in known) / len(known)
    return 100 * math.sqrt(variance), (
        f"guessed from at most {max(known):,} test rows, {100 * _RIGHT:g} % right, correlation {_SHARED:g}; the seeds' "
        "own noise comes on top"
    )


def _rows(table: Table, column: str) -> int | None:
    """Test rows of a column, None where the data decide."""
    task = table.spec(table.methods[0], column).task
    return getattr(task, "num_test", None)

"""What a run will cost, in device hours: measured where a like run has a record, otherwise its kind's estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean

from nora import kinds
from nora.kinds import AnySpec
from nora.kinds.parts.cost import DEVICE_GIB, Fit
from nora.store.record import Record
from nora.tables.cell import Cell

Measured = Mapping[tuple[str, str, str], float]


def fit_of(cell: Cell[AnySpec], device_gib: float = DEVICE_GIB) -> Fit:
    """How one run of the cell fits a device; the largest if the cell waits."""
    spec = cell.spec or cell.like
    return Fit(None, None, "unknown", True) if spec is None else kinds.fit(spec, device_gib)


def memory_gib(cell: Cell[AnySpec]) -> tuple[float | None, str]:
    """Peak device memory of one run in GiB and where the figure comes from; the most if the cell waits."""
    fit = fit_of(cell)
    return fit.memory_gib, fit.source


def measured_hours(records: Iterable[Record]) -> Measured:
    """Mean hours of the runs that are done, by what runs of like cost share."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        if record.status == "done" and "wall_seconds" in record.run:
            spec = kinds.spec_of(record)
            groups.setdefault(kinds.of(spec).like(spec), []).append(record.run["wall_seconds"])
    return {key: mean(values) / 3600 for key, values in groups.items()}


def estimate(cell: Cell[AnySpec], measured: Measured) -> tuple[float | None, str]:
    """Hours of one run and where the figure comes from ("measured", "estimate: …" or "unknown")."""
    spec = cell.spec or cell.like
    if spec is None:
        return None, "unknown until the choice it waits for"
    known = measured.get(kinds.of(spec).like(spec))
    if known is not None:
        return known, "measured: mean of the records of like runs"
    cost = kinds.of(spec).cost(spec)
    return cost.hours, cost.hours_source

"""What a run will cost, in device hours: measured where a like run has a record, otherwise its kind's estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean

from nora import kinds
from nora.config.schema import ExecSpec, has_gpu
from nora.kinds import AnySpec
from nora.kinds.parts.cost import DEVICE_GIB, Cost, Fit
from nora.store.record import Record
from nora.tables.cell import Cell

Measured = Mapping[tuple[str, ...], float]


def fit_of(cell: Cell[AnySpec], device_gib: float = DEVICE_GIB) -> Fit:
    """How one run of the cell fits a device; the largest if the cell waits."""
    spec = cell.spec or cell.like
    return Fit(None, None, "unknown", True) if spec is None else kinds.fit(spec, device_gib)


def memory_gib(cell: Cell[AnySpec]) -> tuple[float | None, str]:
    """Peak device memory of one run in GiB and where the figure comes from; the most if the cell waits."""
    fit = fit_of(cell)
    return fit.memory_gib, fit.source


def device_of(cell: Cell[AnySpec], settings: ExecSpec | None = None) -> str:
    """What the cell's run will be made on, "cuda" or "cpu". Without ``settings`` (this machine's or a cluster's) the
    scale says it, and what is collated is the same everywhere: at paper scale a GPU, otherwise a CPU."""
    spec = cell.spec or cell.like
    if settings is not None and (settings.device != "auto" or (settings.name == "local" and has_gpu(settings))):
        return "cpu" if settings.device == "cpu" else "cuda"
    if spec is not None and spec.kind in ("factorize", "deployment"):
        return "cpu"  # they have no scale, and a cluster gives them no GPU
    return "cuda" if cell.scale == "paper" or (settings is not None and settings.name == "slurm") else "cpu"


def measured_on(record: Record) -> str:
    """The device of a record: "cuda" or "cpu"."""
    return str(record.run.get("device", "cpu")).split(":")[0]


def measured_hours(records: Iterable[Record]) -> Measured:
    """Mean hours of the runs that are done, by device and by what runs of like cost share."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for record, spec in kinds.readable(records):
        if record.status == "done" and "wall_seconds" in record.run:
            key = (measured_on(record), *kinds.of(spec).like(spec))
            groups.setdefault(key, []).append(record.run["wall_seconds"])
    return {key: mean(values) / 3600 for key, values in groups.items()}


def predicted(cell: Cell[AnySpec]) -> Cost:
    """What the cell's run takes by its kind's model of one H100, before anything is measured."""
    spec = cell.spec or cell.like
    return Cost() if spec is None else kinds.of(spec).cost(spec)


def estimate(cell: Cell[AnySpec], measured: Measured, device: str) -> tuple[float | None, str]:
    """Hours of one run on a device and where the figure comes from ("measured", "estimate: …" or "unknown"): what was
    measured on another kind of device, or is worked out for one, says nothing of this one."""
    spec = cell.spec or cell.like
    if spec is None:
        return None, "unknown until the choice it waits for"
    known = measured.get((device, *kinds.of(spec).like(spec)))
    if known is not None:
        return known, "measured: mean of the records of like runs"
    cost = predicted(cell)
    if device != "cuda" and cost.hours is not None:
        return None, "unknown: no like run on a CPU has a record yet"
    return cost.hours, cost.hours_source

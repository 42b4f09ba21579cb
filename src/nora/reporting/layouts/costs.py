"""What every artefact costs: planned and actual hours, peak memory, the size of an adapter, how many runs are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nora.kinds import AnySpec
from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.store.record import Record
from nora.tables.cell import Cell
from nora.tables.estimate import Measured, device_of, estimate, measured_hours, measured_on, memory_gib, predicted
from nora.tables.target import Costs

_FLOAT_BYTES = 4
_COLUMNS = ("runs there", "planned", "so far", "predicted/actual", "memory, GiB", "adapter, kB")


@dataclass(frozen=True)
class Cost:
    """What the runs of one target and kind cost. None: not known."""

    runs: int
    done: int
    waiting: int
    """Runs whose settings wait for a choice: they cost at most what the largest of the values takes."""
    planned: float
    """Hours of all runs whose cost is known."""
    unknown: int
    """Runs that are like no run that is there."""
    actual: float
    """Hours of the runs with a record."""
    on_gpu: float
    """Those of them on a GPU that are done and whose kind predicts its hours there."""
    predicted: float
    """What it predicts for these."""
    planned_memory: float | None
    """GiB, the largest estimate."""
    memory: float | None
    """GiB, the largest measured."""
    adapter: int | None
    """Bytes, the largest."""


def cost(cells: Sequence[Cell[AnySpec]], records: Mapping[str, Record], measured: Measured) -> Cost:
    """The cost of some cells; a run that two cells share counts once."""
    single = {cell.id: cell for cell in cells if cell.id is not None}
    waits = [cell for cell in cells if cell.id is None]
    own = [records[identity] for identity in single if identity in records]
    hours = [estimate(cell, measured, _device(cell, records))[0] for cell in (*single.values(), *waits)]
    on_gpu = [
        (prediction, records[identity].run.get("wall_seconds", 0.0) / 3600)
        for identity, cell in single.items()
        if identity in records and records[identity].status == "done" and measured_on(records[identity]) == "cuda"
        if (prediction := predicted(cell).hours) is not None
    ]
    known = [h for h in hours if h is not None]
    memory = [m for cell in single.values() if (m := memory_gib(cell)[0]) is not None]
    peaks = [r.run["peak_memory_gib"] for r in own if "peak_memory_gib" in r.run]
    parameters = [r.metrics["trainable_parameters"] for r in own if "trainable_parameters" in r.metrics]
    return Cost(
        runs=len(single) + len(waits),
        done=sum(r.status == "done" for r in own),
        waiting=len(waits),
        planned=sum(known),
        unknown=len(hours) - len(known),
        actual=sum(r.run.get("wall_seconds", 0.0) for r in own) / 3600,
        on_gpu=sum(actual for _, actual in on_gpu),
        predicted=sum(prediction for prediction, _ in on_gpu),
        planned_memory=max(memory, default=None),
        memory=max(peaks, default=None),
        adapter=max(parameters, default=None),
    )


def _device(cell: Cell[AnySpec], records: Mapping[str, Record]) -> str:
    """What the run was made on, or would be."""
    found = None if cell.id is None else records.get(cell.id)
    return device_of(cell) if found is None else measured_on(found)


def build(target: Costs, records: Mapping[str, Record]) -> Document:
    """A row per target and kind of run, the totals below a rule."""
    found: list[tuple[str, str, Cost]] = []
    everything: list[Cell[AnySpec]] = []
    others = target.others()
    # A hyper-parameter table lists the runs of the table it belongs to: they are that one's.
    others.sort(key=lambda other: (other.file.layout == "hyperparameters", labels.papers_order(other.name)))
    cells_of = {other.name: other.cells(records) for other in others}
    listed = {cell.id for cells in cells_of.values() for cell in cells}
    measured = measured_hours(record for identity, record in records.items() if identity in listed)
    for name, cells in cells_of.items():
        listed = {cell.id for cell in cells if cell.id is not None}
        if listed <= {cell.id for cell in everything}:
            continue  # the runs of targets before it, shown again
        everything += cells
        kinds = dict.fromkeys(cell.spec.kind for cell in cells if cell.spec is not None)
        for kind in kinds:
            own = [c for c in cells if (c.spec is None and kind == "finetune") or (c.spec and c.spec.kind == kind)]
            found.append((name, kind, cost(own, records, measured)))
    lines = [Line(_row(name, kind), _entries(c)) for name, kind, c in found]
    lines.append(Line("all, a shared run once", _entries(cost(everything, records, measured)), True))
    return Document(
        name=f"{target.name}.{target.scale}",
        title=target.file.title,
        banner="",
        blocks=(Block(f"At {target.scale} scale", _COLUMNS, tuple(lines)),),
        notes=(
            "Planned and so far: time of one device, the one of a run's record; without one a GPU at paper scale, "
            "otherwise one CPU thread. Planned: the mean of like runs that are there on such a device, else, for a "
            "GPU, 4N FLOP per trained token at 20 % of an H100 (N: parameters); runs like none that is there are "
            "counted below it (unknown); those that wait for another method's choice have the cost of the largest "
            "value they wait for, as in `nora plan`. So far: runs with a record, done or diverged.",
            "Predicted/actual: of the runs done on a GPU, what the H100's FLOP say over the hours they took; – where "
            "there is none, or the base's size is not in the model of cost.",
            "Memory: the largest peak measured (of the GPU, or of the process on a CPU), else the largest estimate "
            "(~); – where neither is there. Adapter: trained parameters × 4 bytes, the largest.",
            "Factorisations and deployment have no scale: the same runs at mini and at paper scale.",
        ),
        csv_header=("target", "kind", "scale", "runs", "done", "unknown", "waiting", "planned_hours", "actual_hours",
                    "gpu_hours", "predicted_gpu_hours", "planned_memory_gib", "peak_memory_gib", "adapter_bytes"),
        csv_rows=tuple(
            (name, kind, target.scale, c.runs, c.done, c.unknown, c.waiting, _or_empty(c.planned), f"{c.actual:.6g}",
             f"{c.on_gpu:.6g}", f"{c.predicted:.6g}", _or_empty(c.planned_memory), _or_empty(c.memory),
             "" if c.adapter is None else c.adapter * _FLOAT_BYTES)
            for name, kind, c in found
        ),
    )  # fmt: skip


def _row(name: str, kind: str) -> str:
    """The artefact and, where its name does not say it, the kind of run."""
    artefact = labels.heading(name, name).split(" – ")[0]
    return artefact if name == kind else f"{artefact}, {labels.kind(kind)}"


def _or_empty(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _time(hours: float) -> str:
    for unit, size in (("h", 1.0), ("min", 60.0)):
        if hours * size >= 1:
            return f"{hours * size:.1f} {unit}" if hours * size < 100 else f"{hours * size:,.0f} {unit}"
    return f"{hours * 3600:.0f} s"


def _entries(c: Cost) -> tuple[Entry, ...]:
    memory = "–" if c.planned_memory is None else f"~ {c.planned_memory:.1f}"
    planned = _time(c.planned) if c.unknown < c.runs else "–"
    notes = [f"and {c.unknown} unknown"] if c.unknown else []
    notes += [f"{c.waiting} waiting"] if c.waiting else []
    return (
        Entry(f"{c.done} of {c.runs}"),
        Entry(planned, detail=", ".join(notes)),
        Entry(_time(c.actual)),
        Entry(f"{c.predicted / c.on_gpu:.2f}" if c.on_gpu else "–"),
        Entry(memory if c.memory is None else f"{c.memory:.1f}"),
        Entry("–" if c.adapter is None else f"{c.adapter * _FLOAT_BYTES / 1000:,.0f}"),
    )

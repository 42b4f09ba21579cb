"""The deployment table (paper, A.3): what loads where, what it costs on disk, what a merge leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nora.files import Json
from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.reporting.reported import absent, gap, states_of
from nora.store.record import Record
from nora.tables.subjects import Deployments

EQUAL = 1e-4  # outputs are of order 1 to 10: float32 after a conversion, far below what a wrong base does
_HOSTS = (("text", "opt_mini, PEFT"), ("diffusion", "UNet, diffusers"))
_COLUMNS = (
    "as it is saved by default",
    "beside a LoRA, switched",
    "switched off",
    "saved by nora.adapters",
    "so, beside a LoRA, switched",
    "bytes, default",
    "bytes, nora.adapters",
    "needs",
)


def worst(records: Sequence[Record], host: str, *path: str) -> float | str | None:
    """The largest value over the seeds, or the error that stood in its place."""
    values: list[float] = []
    for record in records:
        value: Json = record.metrics[host]
        for key in path:
            if "error" in value:
                return "does not load"
            value = value[key]
        values.append(value)
    return max(values) if values else None


def _entry(value: float | str | None) -> Entry:
    if value is None:
        return Entry("–")
    if isinstance(value, str):
        return Entry(value)
    text = "0" if value == 0 else f"{value:.1e}" if value < 0.01 else f"{value:#.2g}"
    return Entry(text, best=value <= EQUAL)


def _needs(records: Sequence[Record], host: str) -> str:
    figures = [worst(records, host, "stock", key) for key in ("alone", "beside")]
    if all(isinstance(f, float | int) and f <= EQUAL for f in figures):
        return "nothing"
    return "conversion to rank 2r, or a base of its own"


def _bytes(records: Sequence[Record], host: str, label: str) -> Entry:
    value = worst(records, host, "bytes", label)
    return Entry("–" if value is None else f"{value:,}".replace(",", " "))


def _main_block(found: Mapping[str, Sequence[Record]], gaps: Mapping[str, str], host: str, heading: str) -> Block:
    lines = []
    for init, records in found.items():
        figures = [
            ("stock", "alone"),
            ("stock", "beside"),
            ("stock", "off"),
            ("portable", "alone"),
            ("portable", "beside"),
        ]
        runs = tuple(record.id for record in records)
        entries = [replace(_entry(worst(records, host, *path)), runs=runs) for path in figures]
        sizes = [_bytes(records, host, label) for label in ("stock", "portable")]
        measured = (*entries, *sizes, Entry(_needs(records, host)))
        lines.append(Line(labels.init(init), measured if records else (Entry(gaps[init]),) * len(_COLUMNS)))
    return Block(heading, _COLUMNS, tuple(lines))


def _merge_block(found: Mapping[str, Sequence[Record]], gaps: Mapping[str, str]) -> Block:
    columns, lines = [], []
    paths = [
        (host, f"merge_{dtype}", part)
        for host, _ in _HOSTS
        for dtype in ("float32", "bfloat16")
        for part in ("weight", "output")
    ]
    for host, dtype, part in paths:
        columns.append(f"{host} {dtype.removeprefix('merge_')}: {part}")
    columns += ["diffusers without α"]
    for init, records in found.items():
        entries = [_entry(worst(records, *path)) for path in paths]
        measured = (*entries, _entry(worst(records, "diffusion", "without_alpha")))
        lines.append(Line(labels.init(init), measured if records else (Entry(gaps[init]),) * len(columns)))
    return Block("Merge and unmerge once; α dropped", tuple(columns), tuple(lines))


def _rows(found: Mapping[str, Sequence[Record]]) -> tuple[tuple[object, ...], ...]:
    def flat(value: Json, path: str) -> list[tuple[str, object]]:
        if isinstance(value, dict):
            return [row for key, inner in value.items() for row in flat(inner, f"{path}/{key}")]
        return [(path, value)] if not isinstance(value, list) else [(path, " ".join(map(str, value)))]

    return tuple(
        (init, record.spec["seed"], path, value, record.id)
        for init, records in found.items()
        for record in records
        for host, _ in _HOSTS
        for path, value in flat(record.metrics[host], host)
    )


def build(target: Deployments, records: Mapping[str, Record]) -> Document:
    """A block per host, then what merging leaves; every number is in the CSV with its run."""
    cells = target.cells(records)
    own = {row: [cell for cell in cells if cell.row == row] for row in target.rows}
    gaps = {row: gap(states_of(own[row], records)) for row in target.rows}
    # The worst of fewer seeds than the caption says would look better than it is.
    found = {row: [] if gaps[row] else [records[str(c.id)] for c in own[row]] for row in target.rows}
    return Document(
        name=target.name,
        title=target.file.title,
        banner=absent(states_of(cells, records)),
        blocks=(*(_main_block(found, gaps, host, heading) for host, heading in _HOSTS), _merge_block(found, gaps)),
        notes=(
            *target.file.caption,
            "As saved by default: save_pretrained, and save_lora_weights with its metadata argument. Beside a LoRA: "
            "both adapters in one process, ours, the other, ours again, the worst of the three. Switched off: against "
            "the untouched base. "
            "Saved by nora.adapters: save_adapter and save_diffusers_lora, PiSSA and OLoRA with factors_at_start.",
            "Merge: the largest change of a base weight after merge and unmerge, and of the output while merged. "
            "Without α: save_lora_weights as documented; loading then takes α = r (here r = 8, α = 16).",
        ),
        csv_header=("init", "seed", "figure", "value", "run"),
        csv_rows=_rows(found),
    )

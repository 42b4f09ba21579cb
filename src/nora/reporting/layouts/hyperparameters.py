"""Hyper-parameter tables (5, 7, 8), rendered from conf alone; at paper scale beside what the paper prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.store.record import Record
from nora.tables.methods import Table
from nora.tables.printed import printed_settings

_KEYS = (
    ("rank", "rank r"), ("alpha", "α"), ("num_virtual_tokens", "prefix vectors"), ("xi", "ξ"), ("damping", "λ"),
)  # fmt: skip
_SHARED = (
    "schedule", "warmup_steps", "warmup_ratio", "optimizer", "betas", "eps", "weight_decay", "max_grad_norm",
    "precision", "cutoff", "loss_on", "eval_every", "keep", "beams", "max_new_tokens",
)  # fmt: skip


def build(table: Table, records: Mapping[str, Record]) -> Document:
    """What each method is run with, and the values searched."""
    del records
    task = table.columns[0]
    lines, rows = [], []
    for method in table.methods:
        found: dict[tuple[str, ...], list[str]] = {}
        for column in table.columns:
            found.setdefault(_settings(table, method, column), []).append(column)
        for entries, columns_of in found.items():
            where = ", ".join(labels.column(table.file.axis, c) for c in columns_of) if len(found) > 1 else ""
            label = labels.method(method) + (f", {where}" if where else "")
            lines.append(Line(label, tuple(Entry(e) for e in entries), method in table.file.below_rule[:1]))
            rows.append((table.scale, method + (f"@{'+'.join(columns_of)}" if where else ""), *entries))
    columns = (*(label for _, label in _KEYS), "learning rate", "batch size", "epochs")
    used = [i for i in range(len(columns)) if any(line.entries[i].text != "–" for line in lines)]
    shown = tuple(replace(line, entries=tuple(line.entries[i] for i in used)) for line in lines)
    protocol = table.spec(table.methods[0], task).protocol
    shared = tuple(
        Line(labels.setting(key), (Entry(labels.value(value)),))
        for key in _SHARED
        if (value := getattr(protocol, key, None)) is not None
    )
    sizes = tuple(
        Line(
            labels.column(table.file.axis, t),
            tuple(Entry(f"{getattr(table.spec(table.methods[0], t).task, k):,}") for k in _ROWS),
        )
        for t in table.columns
    )
    return Document(
        name=f"{table.name}.{table.scale}",
        title=labels.heading(table.name, table.file.title),
        banner=labels.BANNERS[table.scale],
        blocks=(
            Block("Per method (braces: searched)", tuple(columns[i] for i in used), shown),
            Block("Shared by all methods", ("value",), shared),
            Block("Rows asked for (fewer where the set is smaller)", tuple(map(labels.setting, _ROWS)), sizes),
            *_printed(table),
        ),
        notes=_notes(table),
        csv_header=("scale", "method", *columns),
        csv_rows=tuple(rows),
    )


def _settings(table: Table, method: str, column: str) -> tuple[str, ...]:
    """What a method is run with in a column; braces: searched."""
    spec, grid = table.spec(method, column), table.file.grid(method, column)
    searched = {key.rsplit(".", 1)[-1]: values for key, values in grid.items()}
    entries = []
    for key, _ in _KEYS:
        value = getattr(spec.method, key)
        entries.append("–" if value is None else _values(searched.get(key, [value])))
    entries.append(_values(searched["lr"]))
    reused = "protocol.batch_size" in table.file.search.reuse and "batch_size" not in searched
    batch = _values(searched.get("batch_size", [spec.protocol.batch_size]))
    entries.append(f"as {labels.method(table.file.search.first)}" if reused else batch)
    entries.append(_values(searched.get("epochs", [spec.protocol.epochs])))
    return tuple(entries)


_ROWS = ("num_train", "num_dev", "num_test")


_PRINTED = {
    "rank": "rank r", "alpha": "α", "targets": "adapted modules", "epochs": "epochs", "steps": "steps",
    "batch_size": "batch size", "lr": "learning rate", "xi": "ξ", "cutoff": "cut-off length",
}  # fmt: skip


def _printed(table: Table) -> tuple[Block, ...]:
    """The paper's own lines, at paper scale."""
    settings = printed_settings(table.name) if table.scale == "paper" else {}
    lines = []
    for key, setting in settings.items():
        text = ", ".join(map(str, setting.values)) if key == "targets" else _values(list(setting.values))
        lines.append(Line(_PRINTED[key], (Entry(text + "†" * setting.doubtful),)))
    heading = f"As the paper's Table {table.name.removeprefix('table')} prints it"
    return (Block(heading, ("value",), tuple(lines)),) if lines else ()


def _notes(table: Table) -> tuple[str, ...]:
    notes = []
    if table.file.search.reuse:
        notes.append(
            f"Batch size is searched for {labels.method(table.file.search.first)} only and then reused by every "
            "method on that task (paper, Appendix E.4)."
        )
    if table.scale != "paper":
        return (*notes, "Values of this scale, not the paper's.")
    if any(setting.doubtful for setting in printed_settings(table.name).values()):
        notes.append("† the scan of the paper leaves the exponent open.")
    if table.name == "table5":
        notes.append(
            "The first learning rate is 1e-5 or 1e-2: 1e-5 is taken for the LoRA family, 1e-2 is in the prefix range."
        )
    return tuple(notes)


def _values(values: list[object]) -> str:
    texts = [labels.value(v) for v in values]
    return texts[0] if len(texts) == 1 else "{" + ", ".join(texts) + "}"

"""Hyper-parameter tables (Table 5), rendered from conf alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nora.collate import labels
from nora.collate.document import Block, Document, Entry, Line
from nora.runs.record import Record
from nora.tables.cells import SpecBook
from nora.tables.table import Table

_KEYS = (
    ("rank", "rank r"), ("alpha", "α"), ("num_virtual_tokens", "prefix vectors"), ("xi", "ξ"), ("damping", "λ"),
)  # fmt: skip
_SHARED = (
    "epochs",
    "schedule",
    "warmup_steps",
    "optimizer",
    "betas",
    "eps",
    "weight_decay",
    "max_grad_norm",
    "precision",
)


def build(table: Table, records: Mapping[str, Record], *, checkout: Path) -> Document:
    """What each method is run with, and the values searched."""
    del records
    book = SpecBook(checkout, table)
    task = table.columns[0]
    lines, rows = [], []
    for method in table.methods:
        spec = book.spec(method, task, table.seeds[0], [], {})
        grid = {key.rsplit(".", 1)[-1]: values for key, values in table.file.grid(method, task).items()}
        entries = []
        for key, _ in _KEYS:
            value = spec["method"].get(key)
            entries.append("–" if value is None else _values(grid.get(key, [value])))
        entries.append(_values(grid["lr"]))
        entries.append(
            _values(grid["batch_size"]) if "batch_size" in grid else f"as {labels.method(table.file.search.first)}"
        )
        lines.append(Line(labels.method(method), tuple(Entry(e) for e in entries), method in table.file.below_rule[:1]))
        rows.append((table.scale, method, *entries))
    columns = (*(label for _, label in _KEYS), "learning rate", "batch size")
    protocol = book.spec(table.methods[0], task, table.seeds[0], [], {})["protocol"]
    shared = tuple(Line(key, (Entry(_plain(protocol.get(key))),)) for key in _SHARED)
    sizes = tuple(
        Line(labels.task(t), tuple(Entry(str(book.spec(table.methods[0], t, 0, [], {})["task"][k])) for k in _ROWS))
        for t in table.columns
    )
    return Document(
        name=f"{table.name}.{table.scale}",
        title=f"Table {table.name.removeprefix('table')} – {table.file.title}",
        banner=labels.BANNERS[table.scale],
        blocks=(
            Block("Per method (braces: searched)", columns, lines=tuple(lines)),
            Block("Shared", ("value",), shared),
            Block("Rows asked for (fewer where the set is smaller)", _ROWS, sizes),
        ),
        notes=(
            "Batch size is searched for LoRA only and then reused by every method on that task (paper, Appendix E.4).",
            "The scan of the paper leaves the first learning rate open (1e-5 or 1e-2); 1e-5 is taken for the LoRA "
            "family, 1e-2 is in the prefix range."
            if table.scale == "paper"
            else "Values of this scale, not the paper's.",
        ),
        csv_header=("scale", "method", *columns),
        csv_rows=tuple(rows),
    )


_ROWS = ("num_train", "num_dev", "num_test")


def _plain(value: object) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, list) else _values([value])


def _values(values: list[object]) -> str:
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return texts[0] if len(texts) == 1 else "{" + ", ".join(texts) + "}"

"""Records that no run made: seeded numbers for the cells of a table, so that collation is tested without training."""

from __future__ import annotations

import hashlib
from typing import Any

from nora.config.spec import spec_dict
from nora.store.record import Record
from nora.tables.cell import Cell
from nora.tables.methods import Table

ADAPTER_SHA256 = hashlib.sha256(b"kept").hexdigest()


def _unit(*words: object) -> float:
    """A number of [0, 1) in thousandths that depends on ``words`` alone."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:4], "big") % 1000 / 1000


def record_of(cell: Cell, *, status: str = "done", dirty: bool = False, **test: float) -> Record:
    """A record of the cell's spec with made-up metrics (``test`` overrides those of the test set)."""
    key = (cell.row, cell.column, cell.seed, sorted(cell.settings.items()))
    metric = "f1" if cell.column == "squad" else "accuracy"
    dev = {metric: _unit("dev", *key), "loss": 1 + _unit("loss", *key), "gold_nll": 2.0, "n": 64, "epoch": 1}
    found = {
        metric: round(0.5 + _unit("test", *key) / 2, 4),
        "loss": 1.0,
        "gold_nll": 2 + _unit("nll", *key),
        "n": 64,
    }
    metrics: dict[str, Any] = {
        "dev": dev,
        "epochs": [dev],
        "test": {**found, **test},
        "majority_accuracy": 0.5,
        "zero_shot": {"accuracy": 0.25, "gold_nll": 4.0},
    }
    assert cell.spec is not None
    if "spectrum" in getattr(cell.spec, "measure", ()):
        counts = [int(8 * _unit("count", *key, i)) for i in range(64)]
        metrics["spectrum"] = {"counts": counts, "beyond": 0, "matrices": 8, "top_rank_share": _unit("share", *key)}
    module = {"relative_difference": 1e-7, "rho": 2.0, "rho_sketch": 2.0, "scale_ratio": 1.0, "name": "m"}
    result: dict[str, Any] = {
        "spec": spec_dict(cell.spec),
        "status": status,
        "metrics": metrics if status == "done" else {"epochs": []},
        "proof": {"init": "x", "passed": True, "problems": [], "modules": [module], "output_difference": 0.0},
        "files": {"adapter": {"name": "a.safetensors", "sha256": ADAPTER_SHA256}},
    }
    if status == "diverged":
        result["diverged"] = {"step": 3, "tensor": "the loss"}
    assert cell.id is not None
    return Record(cell.id, result, {"wall_seconds": 36.0, "commit": "c" * 40, "dirty": dirty})


def complete(table: Table) -> dict[str, Record]:
    """A record for every cell: stage 1, then what it opens."""
    records: dict[str, Record] = {}
    while True:
        open_cells = [c for c in table.cells(records) if c.id and c.id not in records]
        if not open_cells:
            return records
        records |= {str(c.id): record_of(c) for c in open_cells}

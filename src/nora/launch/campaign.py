"""``nora launch`` with exec=local: runs what is missing, stage after stage, until nothing more can be run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nora.launch.local import Finished, run_cells
from nora.launch.plan import RETRIED, SUBMITTABLE, counts, plan
from nora.launch.queue import Queue
from nora.runs.store import Store
from nora.tables.cells import SpecBook
from nora.tables.table import Table
from nora.tables.targets import Target, target_cells


def launch_local(
    table: Target,
    *,
    checkout: Path,
    store: Store,
    processes: int,
    threads: int,
    exec_overrides: Sequence[str],
    queue: Queue | None = None,
    retry: bool = False,
) -> int:
    """0 when every cell (with ``retry``: every one that had failed) is done or diverged, 1 otherwise. A run that failed
    is tried once per launch; one that SLURM holds (``queue``) is left to it."""
    states = RETRIED if retry else SUBMITTABLE
    book = SpecBook(checkout, table) if isinstance(table, Table) else None
    tried: set[str] = set()
    while True:
        records = {record.id: record for record in store.records()}
        planned = plan(target_cells(table, records, checkout=checkout, book=book), store, records, queue)
        # One record may serve two cells; it is run once.
        missing = {p.cell.id: p.cell for p in planned if p.state in states and p.cell.id not in tried}
        if not missing:
            asked = [p for p in planned if not retry or p.cell.id in tried]
            left = any(p.state not in ("done", "diverged") for p in asked)
            tally = ", ".join(f"{n} {state}" for state, n in counts(planned).items())
            print(f"{table.headline}: {tally}", flush=True)
            return 1 if left else 0
        tried |= {str(identity) for identity in missing}
        started = time.monotonic()
        count = 0

        def show(finished: Finished, total: int = len(missing), started: float = started) -> None:
            nonlocal count
            count += 1
            elapsed = time.monotonic() - started
            left = elapsed / count * (total - count)
            cell = finished.cell
            line = f"[{count}/{total}] {finished.state:8} {cell.row:10} {cell.column:8} seed {cell.seed}  {cell.id}"
            print(f"{line}  {left / 60:.1f} min left {finished.message}".rstrip(), file=sys.stderr, flush=True)

        run_cells(
            list(missing.values()),
            checkout=checkout,
            processes=processes,
            threads=threads,
            exec_overrides=exec_overrides,
            on_finished=show,
        )

"""``exec=local``: the missing runs of a target in a few processes of this machine, stage after stage."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from nora.errors import RunFailed, UserError
from nora.launch.plan import RETRIED, SUBMITTABLE, counts, plan
from nora.launch.queue import Queue
from nora.store.runs import Store
from nora.tables.search import Cell, SpecBook
from nora.tables.table import Table
from nora.tables.target import Target, target_cells

_WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Finished:
    """How one run ended."""

    cell: Cell
    state: str
    message: str = ""


def _end_with(parent: int) -> None:
    """Ends this process soon after its launcher is gone (killed, say): a run nobody waits for must not go on."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _start_worker(threads: int) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the launcher, which stops its workers
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


def _run(checkout: str, cell: Cell, exec_overrides: tuple[str, ...], tags: tuple[str, ...]) -> tuple[str, str]:
    from nora.config.spec import compose_run
    from nora.errors import AlreadyRunning
    from nora.execution.execute import execute
    from nora.store.runs import Store

    root = Path(checkout)
    try:
        spec, settings, _ = compose_run(root, [*cell.overrides, *exec_overrides])
        record, _ = execute(spec, settings, checkout=root, store=Store(root / settings.results), tags=tags)
    except AlreadyRunning as running:
        return "running", str(running)
    except (RunFailed, UserError) as error:
        return "failed", str(error)
    return record.status, ""


def run_cells(
    cells: Sequence[Cell],
    *,
    checkout: Path,
    processes: int,
    threads: int,
    exec_overrides: Sequence[str],
    on_finished: Callable[[Finished], None],
) -> list[Finished]:
    """Runs every cell, ``processes`` at a time; a run that raises or kills its process leaves the others alone.

    One process that dies takes the whole pool with it. So those that ran then are run again by themselves, one at a
    time: which of them it was shows there.
    """
    pending: list[Cell] = list(cells)
    suspects: list[Cell] = []
    finished: list[Finished] = []
    context = multiprocessing.get_context("spawn")

    def done(outcome: Finished) -> None:
        finished.append(outcome)
        on_finished(outcome)

    while pending or suspects:
        alone = bool(suspects)
        queue = [suspects.pop(0)] if alone else pending
        width = 1 if alone else processes
        with ProcessPoolExecutor(width, mp_context=context, initializer=_start_worker, initargs=(threads,)) as pool:
            running: dict[Future[tuple[str, str]], Cell] = {}
            try:
                while queue or running:
                    while queue and len(running) < width:  # no more than run now: the rest survives a broken pool
                        cell = queue[0]
                        tags = (cell.table, cell.scale)
                        running[pool.submit(_run, str(checkout), cell, tuple(exec_overrides), tags)] = cell
                        del queue[0]  # not before: a pool that has just broken takes nothing
                    ready, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ready:
                        state, message = future.result()
                        done(Finished(running.pop(future), state, message))
            except BrokenProcessPool:
                if alone:
                    done(Finished(cell, "failed", "its process was killed, twice"))
                else:
                    suspects = list(running.values())
            except KeyboardInterrupt:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                raise
    return finished


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

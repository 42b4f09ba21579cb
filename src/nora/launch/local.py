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

from nora.config.schema import ExecSpec
from nora.errors import AlreadyRunning, RunFailed, UserError
from nora.kinds import AnySpec
from nora.launch.plan import ENDED, RETRIED, SUBMITTABLE, counts, current_plan
from nora.launch.queue import Queue
from nora.store.runs import Store
from nora.tables.cell import Cell
from nora.tables.target import AnyTarget
from nora.workspace import Workspace

_WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Finished:
    """How one run ended."""

    cell: Cell[AnySpec]
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


def _run(checkout: Path, spec: AnySpec, settings: ExecSpec, tags: tuple[str, ...]) -> tuple[str, str]:
    from nora.execution.execute import execute

    try:
        record, _ = execute(spec, settings, checkout=checkout, store=Store(checkout / settings.results), tags=tags)
    except AlreadyRunning as running:
        return "running", str(running)
    except (RunFailed, UserError) as error:
        return "failed", str(error)
    return record.status, ""


def run_cells(
    cells: Sequence[Cell[AnySpec]],
    workspace: Workspace,
    *,
    processes: int,
    on_finished: Callable[[Finished], None],
) -> list[Finished]:
    """Runs every cell, ``processes`` at a time; a run that raises or kills its process leaves the others alone.

    One process that dies takes the whole pool with it. So those that ran then are run again by themselves, one at a
    time: which of them it was shows there.
    """
    pending: list[Cell[AnySpec]] = list(cells)
    suspects: list[Cell[AnySpec]] = []
    finished: list[Finished] = []
    context, settings = multiprocessing.get_context("spawn"), workspace.settings

    def done(outcome: Finished) -> None:
        finished.append(outcome)
        on_finished(outcome)

    while pending or suspects:
        alone = bool(suspects)
        queue = [suspects.pop(0)] if alone else pending
        width = 1 if alone else processes
        with ProcessPoolExecutor(
            width, mp_context=context, initializer=_start_worker, initargs=(settings.threads,)
        ) as pool:
            running: dict[Future[tuple[str, str]], Cell[AnySpec]] = {}
            try:
                while queue or running:
                    while queue and len(running) < width:  # no more than run now: the rest survives a broken pool
                        cell = queue[0]
                        tags = (cell.table, cell.scale)
                        assert cell.spec is not None  # a cell that waits is never missing
                        running[pool.submit(_run, workspace.checkout, cell.spec, settings, tags)] = cell
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


def launch_local(target: AnyTarget, workspace: Workspace, *, queue: Queue | None = None, retry: bool = False) -> int:
    """0 when every cell (with ``retry``: every one that had failed) is done or diverged, 1 otherwise. A run that failed
    is tried once per launch; one that SLURM holds (``queue``) is left to it."""
    states = RETRIED if retry else SUBMITTABLE
    tried: set[str] = set()
    while True:
        planned = current_plan(target, workspace, queue)
        # One record may serve two cells; it is run once.
        missing = {p.cell.id: p.cell for p in planned if p.state in states and p.cell.id not in tried}
        if not missing:
            asked = [p for p in planned if not retry or p.cell.id in tried]
            left = any(p.state not in ENDED for p in asked)
            tally = ", ".join(f"{n} {state}" for state, n in counts(planned).items())
            print(f"{target.headline}: {tally}", flush=True)
            return 1 if left else 0
        tried |= {str(identity) for identity in missing}
        show = _progress(len(missing))
        run_cells(list(missing.values()), workspace, processes=workspace.settings.processes, on_finished=show)


def _progress(total: int) -> Callable[[Finished], None]:
    """Prints a line for each run that ended, with the time that the rest will take at this pace."""
    started, count = time.monotonic(), 0

    def show(finished: Finished) -> None:
        nonlocal count
        count += 1
        left = (time.monotonic() - started) / count * (total - count)
        cell = finished.cell
        line = f"[{count}/{total}] {finished.state:8} {cell.row:10} {cell.column:8} seed {cell.seed}  {cell.id}"
        print(f"{line}  {left / 60:.1f} min left {finished.message}".rstrip(), file=sys.stderr, flush=True)

    return show

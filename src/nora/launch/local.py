"""``exec=local``: the missing runs of a target in a few processes of this machine, stage after stage."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from nora.config.schema import ExecSpec
from nora.errors import AlreadyRunning, Interrupted, RunFailed, UserError
from nora.execution.progress import Pace, Sight, step_text
from nora.execution.stops import Stops, listening
from nora.kinds import AnySpec
from nora.launch.banks import local_banks
from nora.launch.plan import ENDED, RETRIED, SUBMITTABLE, PlannedCell, counts, current_plan
from nora.launch.queue import Queue
from nora.store.record import Record
from nora.store.runs import Store, last_update
from nora.store.states import State
from nora.tables.cell import Cell
from nora.tables.estimate import predicted
from nora.tables.target import AnyTarget
from nora.workspace import Workspace

_WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Finished:
    """How one run ended."""

    cell: Cell[AnySpec]
    state: str
    message: str = ""


_told = Stops()
"""Of a worker, for as long as it lives: TERM may come before its first run begins."""


def _end_with(parent: int) -> None:
    """Ends this process soon after its launcher is gone (killed, say): a run nobody waits for must not go on."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _start_worker(threads: int) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's are for the launcher, which tells its workers by TERM
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _told.take)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


def _run(checkout: Path, runs: Sequence[tuple[AnySpec, tuple[str, ...]]], settings: ExecSpec) -> list[tuple[str, str]]:
    """The state that each run ended in, with a message; several are the members of a bank."""
    from nora.execution.bank import BankRun, execute_bank
    from nora.execution.execute import execute

    store = Store(checkout / settings.results)
    ended = [("interrupted", "")] * len(runs)

    def told(number: int, how: Record | Exception) -> None:
        state = "running" if isinstance(how, AlreadyRunning) else "failed"
        ended[number] = (how.status, "") if isinstance(how, Record) else (state, str(how))

    where: Any = {"checkout": checkout, "store": store, "stop_requested": _told.requested}
    try:
        if len(runs) > 1:
            execute_bank([BankRun(spec, tags) for spec, tags in runs], settings, on_ended=told, **where)
        else:
            ((spec, tags),) = runs
            told(0, execute(spec, settings, tags=tags, **where)[0])
    except Interrupted as stopped:
        ended = [one if one[0] != "interrupted" else ("interrupted", str(stopped)) for one in ended]
    except (AlreadyRunning, RunFailed, UserError) as error:
        told(0, error)
    return ended


def run_cells(
    cells: Sequence[Cell[AnySpec]],
    workspace: Workspace,
    *,
    processes: int,
    on_finished: Callable[[Finished], None],
    watch: Callable[[Sequence[Cell[AnySpec]]], None] = lambda running: None,
) -> list[Finished]:
    """Runs every cell, ``processes`` at a time; a run that raises or kills its process leaves the others alone.
    ``watch`` is called with what runs, every second.

    One process that dies takes the whole pool with it. So those that ran then are run again by themselves, one at a
    time: which of them it was shows there. Told to stop, it tells its workers, waits until those that run have saved
    their state, and raises KeyboardInterrupt.
    """
    pending = local_banks(cells, replace(workspace.settings, processes=processes))
    suspects: list[list[Cell[AnySpec]]] = []
    finished: list[Finished] = []

    def done(outcome: Finished) -> None:
        finished.append(outcome)
        on_finished(outcome)

    _start_tracker()
    with listening() as stops:
        while (pending or suspects) and not stops.requested():
            alone = bool(suspects)
            queue = [suspects.pop(0)] if alone else pending
            cut_off = _one_pool(queue, workspace, width=1 if alone else processes, stops=stops, done=done, watch=watch)
            if stops.requested():
                break  # a worker that was still starting took TERM for its end
            if not alone:
                suspects = [[cell] for bank in cut_off for cell in bank]
            elif cut_off:
                done(Finished(cut_off[0][0], "failed", "its process was killed, twice"))
        if stops.requested():
            raise KeyboardInterrupt
    return finished


def _one_pool(
    queue: list[list[Cell[AnySpec]]],
    workspace: Workspace,
    *,
    width: int,
    stops: Stops,
    done: Callable[[Finished], None],
    watch: Callable[[Sequence[Cell[AnySpec]]], None],
) -> list[list[Cell[AnySpec]]]:
    """Takes banks from ``queue`` until it is empty, or the pool breaks: those that ran then are returned."""
    settings, context = workspace.settings, multiprocessing.get_context("spawn")
    running: dict[Future[list[tuple[str, str]]], list[Cell[AnySpec]]] = {}
    told = False
    with ProcessPoolExecutor(
        width, mp_context=context, initializer=_start_worker, initargs=(settings.threads,)
    ) as pool:
        try:
            while running or (queue and not stops.requested()):
                # No more than run now: the rest survives a broken pool.
                while queue and len(running) < width and not stops.requested():
                    # A cell that waits is never missing.
                    runs = [(c.spec, (c.table, c.scale)) for c in queue[0] if c.spec is not None]
                    running[pool.submit(_run, workspace.checkout, runs, settings)] = queue[0]
                    del queue[0]  # not before: a pool that has just broken takes nothing
                watch([cell for bank in running.values() for cell in bank])
                ready, _ = wait(running, timeout=_WATCH_SECONDS, return_when=FIRST_COMPLETED)
                for future in ready:
                    ended = future.result()
                    for cell, (state, message) in zip(running.pop(future), ended, strict=True):
                        done(Finished(cell, state, message))
                if stops.requested() and not told:
                    told = True
                    _tell(pool)
        except BrokenProcessPool:
            return list(running.values())
        except KeyboardInterrupt:
            _tell(pool)
            raise
    return []


def _start_tracker() -> None:
    """multiprocessing's own helper, deaf to HUP as it is to Ctrl-C: another one would know nothing of the pool."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.signal(signal.SIGHUP, before)


def _tell(pool: ProcessPoolExecutor) -> None:
    """Orders every worker of a pool to stop."""
    for process in list((pool._processes or {}).values()):
        process.terminate()


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
            waits = Counter(p.reason for p in asked if p.state is State.WAITS)
            for reason, number in waits.items():  # it runs in another process, or failed
                print(f"  {number} wait {reason}, which is not done: the same command goes on from there", flush=True)
            return 1 if left else 0
        tried |= {str(identity) for identity in missing}
        board = Board(target.name, [p for p in planned if p.cell.id in missing], workspace)
        try:
            with board.sight:
                run_cells(
                    list(missing.values()), workspace, processes=workspace.settings.processes,
                    on_finished=board.ended, watch=board.look,
                )  # fmt: skip
        except KeyboardInterrupt:
            tally = ", ".join(f"{n} {state}" for state, n in counts(current_plan(target, workspace, queue)).items())
            print(f"{target.headline}: stopped: {tally}", flush=True)
            raise


_TRAINING = 0.9  # of a run, where it is not known: its other phases have the rest


class Board:
    """What is shown of a launch: runs that are done, what the others are at, the time left at the pace of the steps."""

    def __init__(self, name: str, planned: Sequence[PlannedCell], workspace: Workspace) -> None:
        self.sight = Sight(name, enabled=workspace.settings.progress)
        self._store, self._pace = workspace.store, Pace()
        self._weights = _weights(planned)
        self._done: set[str | None] = set()

    def look(self, running: Sequence[Cell[AnySpec]]) -> None:
        """Reads how far each of the runs under way is, in its journal."""
        total, texts = sum(self._weights.values()), []
        done = sum(self._weights[str(identity)] for identity in self._done)
        for cell in running:
            attempts = self._store.attempts(cell.spec.kind, str(cell.id)) if cell.spec is not None else []
            last = last_update(attempts[-1].journal) if attempts else None
            if last is None:
                continue
            share = last["step"] / last["total"] if last["total"] else 0.0
            known = {"train": _TRAINING * share, "zero shot": 0.0}
            part = (
                share if last["phase"] == "iterate" else known.get(last["phase"], _TRAINING + (1 - _TRAINING) * share)
            )
            done += self._weights[str(cell.id)] * min(part, 1.0)
            told = step_text(last["phase"], last["step"], last["total"], last)
            texts.append(f"{cell.row} {cell.column} {cell.seed}: {told}")
        more = f" (+{len(running) - 1})" if len(running) > 1 else ""
        parts = [f"{len(self._done)}/{len(self._weights)} runs", self._pace.left(done, total)]
        parts.append(f"{texts[0]}{more}" if texts else f"{len(running)} starting")
        self.sight.update(done, total, " · ".join(filter(None, parts)))

    def ended(self, finished: Finished) -> None:
        """A line for a run that ended."""
        self._done.add(finished.cell.id)
        cell, total = finished.cell, len(self._weights)
        line = (
            f"[{len(self._done)}/{total}] {finished.state:8} {cell.row:10} {cell.column:8} seed {cell.seed}  {cell.id}"
        )
        self.sight.say(f"{line}  {finished.message}".rstrip())


def _weights(planned: Sequence[PlannedCell]) -> dict[str, float]:
    """What each run takes beside the others, by its id: measured, else by its kind's model, else the same."""
    costs = [{str(p.cell.id): p.hours for p in planned}, {str(p.cell.id): predicted(p.cell).hours for p in planned}]
    for known in costs:
        if all(known.values()):
            return {identity: float(hours) for identity, hours in known.items() if hours is not None}
    return dict.fromkeys(costs[0], 1.0)

"""What one task of an array does on its compute node: its runs, one after the other, stopping when SLURM says so."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nora.config.schema import ExecSpec
from nora.errors import AlreadyRunning, Interrupted, RunFailed, UserError
from nora.execution import provenance
from nora.files import Json
from nora.kinds import AnySpec
from nora.launch import slurm
from nora.launch.banks import in_banks
from nora.launch.submission import Submission, load
from nora.store.attempt import Job
from nora.store.record import Record
from nora.store.runs import Store

_TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: try again


class StopSignals:
    """USR2 (time limit or preemption is near) and TERM (the end is here) become flags that the run asks for.

    USR2 is sent to every process of the step. It is blocked here, so that every later child, forked or executed,
    inherits the block and lives on; a thread waits for it. Threads that were there before have no block: for them
    the handler sets the same flag.
    """

    def __init__(self) -> None:
        self.requeue = threading.Event()
        self.end = threading.Event()
        signal.signal(signal.SIGUSR2, lambda number, frame: self.requeue.set())
        signal.signal(signal.SIGTERM, lambda number, frame: self.end.set())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        while True:
            signal.sigwait({signal.SIGUSR2})
            self.requeue.set()

    def requested(self) -> bool:
        """Whether the run is to save its state and stop."""
        return self.requeue.is_set() or self.end.is_set()


def check_code(submission: Submission) -> None:
    """RunFailed where this process imports other code than was submitted (``exec.code=live`` takes any commit)."""
    wanted = Path(submission.content["code"])
    here = provenance.package_root()
    if here != wanted.resolve():
        raise RunFailed(f"this node imports nora from {here}, the submission's code is in {wanted}")
    given, frozen = provenance.code_version(wanted)["commit"], submission.content["commit"]
    if submission.content["exec"]["code"] != "live" and given != frozen:
        raise RunFailed(f"{wanted} is at commit {given}, submitted was {frozen}; launch again, or use exec.code=live")


def _node_settings(settings: ExecSpec) -> ExecSpec:
    """Compute nodes have no network: W&B logs offline there and `nora sync-wandb` uploads from the login node."""
    return replace(settings, wandb="offline" if settings.wandb == "online" else settings.wandb, progress=False)


def work(folder: Path, ids: Sequence[str], *, job: str) -> None:
    """Executes the runs. Raises RunFailed at the end where any failed, so that the job is FAILED for SLURM too;
    exits with 75 where it was stopped with runs left (after USR2 the job has been requeued by then)."""
    signals = StopSignals()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    submission = load(folder)
    check_code(submission)
    store = Store(Path(submission.content["results"]))
    own = slurm.this_job(job)
    settings = _node_settings(submission.settings())
    failed: list[str] = []
    ended = 0

    def told(identity: str, how: Record | Exception) -> None:
        nonlocal ended
        ended += 1
        if isinstance(how, Record):
            print(f"run {identity}: {how.status}", flush=True)
        elif isinstance(how, AlreadyRunning):
            print(f"{how}; nothing to do here", flush=True)
        else:
            print(f"run {identity} failed: {how}", file=sys.stderr, flush=True)
            failed.append(identity)

    for bank in _banks(submission, settings, ids):
        if signals.requested():
            _stop(signals, job if submission.requeue else None, left=len(ids) - ended)
        try:
            _train(submission, store, settings, bank, signals, own, told, keep_base=len(ids) > 1)
        except Interrupted as stopped:
            print(f"run {', '.join(bank)}: {stopped}", flush=True)
            _stop(signals, job if submission.requeue else None, left=len(ids) - ended)
    if failed:
        raise RunFailed(f"{len(failed)} of {len(ids)} runs failed: {', '.join(failed)}")


def _banks(submission: Submission, settings: ExecSpec, ids: Sequence[str]) -> list[list[str]]:
    """The task's runs, those together that train together: what was laid out, if this node has what it was for."""
    import torch

    on_gpu = torch.cuda.is_available()
    if not (on_gpu or settings.bank):
        return [[identity] for identity in ids]
    specs: list[AnySpec | None] = []
    for identity in ids:
        try:
            specs.append(submission.spec(identity))
        except (RunFailed, UserError):  # told of when its turn comes: by itself, the others go on
            specs.append(None)
    return [[ids[place] for place in bank] for bank in in_banks(specs, settings, on_gpu=on_gpu)]


def _train(
    submission: Submission,
    store: Store,
    settings: ExecSpec,
    bank: Sequence[str],
    signals: StopSignals,
    job: Job,
    told: Callable[[str, Record | Exception], None],
    *,
    keep_base: bool,
) -> None:
    """Executes one run, or several as a bank; those that have failed too often are left alone."""
    from nora.execution.bank import BankRun, execute_bank
    from nora.execution.execute import execute

    runs: dict[str, BankRun] = {}
    for identity in bank:
        entry: dict[str, Json] = submission.content["runs"][identity]
        try:
            spec = submission.spec(identity)
        except (RunFailed, UserError) as error:
            told(identity, error)
            continue
        failures = store.failures(spec.kind, identity)
        if failures >= entry["failures_allowed"]:
            told(identity, RunFailed(f"run {identity} has failed {failures} times; see nora why {identity}"))
            continue
        runs[identity] = BankRun(spec, tuple(entry["tags"]), entry["dead_up_to"])
    names = list(runs)
    where: Any = {
        "checkout": Path(submission.content["code"]), "store": store, "stop_requested": signals.requested, "job": job
    }  # fmt: skip
    if len(runs) > 1:
        execute_bank(list(runs.values()), settings, on_ended=lambda place, how: told(names[place], how), **where)
        return
    for identity, run in runs.items():
        try:
            record, _ = execute(
                run.spec, settings, tags=run.tags, dead_up_to=run.dead_up_to, keep_base=keep_base, **where
            )
        except (AlreadyRunning, RunFailed, UserError) as error:
            told(identity, error)
        else:
            told(identity, record)


def _stop(signals: StopSignals, job: str | None, *, left: int) -> None:
    """Leaves the node; after USR2 ``job`` goes back into the queue first (after TERM that is SLURM's own business)."""
    if job is None:
        print(f"{left} runs left; the profile says requeue: false, `nora launch` submits them", flush=True)
    elif signals.requeue.is_set():
        try:
            slurm.requeue(job)
            print(f"job {job} requeued with {left} runs left", flush=True)
        except (RunFailed, UserError) as error:
            print(f"job {job} could not be requeued ({error}); `nora launch` submits what is left", flush=True)
    sys.exit(_TEMPORARY_FAILURE)

"""Several runs over one base in one step each: every one with an attempt, a journal and a record of its own."""

from __future__ import annotations

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nora import kinds
from nora.adapters import NotBankable
from nora.config.schema import ExecSpec
from nora.errors import AlreadyRunning, BankEnded, Interrupted, RunFailed, UserError
from nora.execution import provenance
from nora.execution.execute import Attempted, attempted, begin, execute, published
from nora.kinds import Spec
from nora.kinds.parts.recipe import Outcome, Prepared, train_alone, train_together
from nora.store.attempt import Job
from nora.store.record import Record
from nora.store.runs import Store
from nora.training.loop import Diverged

_LOG = logging.getLogger(__name__)
Ended = Record | RunFailed | UserError | AlreadyRunning


@dataclass(frozen=True)
class BankRun:
    """One run that is asked for, and what is known of it outside of its spec."""

    spec: Spec
    tags: tuple[str, ...] = ()
    dead_up_to: int = 0


@dataclass
class _Member:
    """A run that has an attempt; ``stack`` ends it."""

    number: int
    run: BankRun
    stack: ExitStack
    own: Attempted
    ready: Prepared
    seconds: float

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts what is this run's alone."""
        since = time.monotonic()
        yield
        self.seconds += time.monotonic() - since


def execute_bank(
    runs: Sequence[BankRun],
    settings: ExecSpec,
    *,
    checkout: Path,
    store: Store,
    on_ended: Callable[[int, Ended], None],
    stop_requested: Callable[[], bool] = lambda: False,
    job: Job | None = None,
) -> None:
    """Tells ``on_ended`` of each run, by its place, its record or why there is none, as soon as it has ended.

    Runs that are done, or that a live attempt has, are told at once. The others train together; where earlier attempts
    left them at different steps, those of one step at a time. Each is tested and published before the next one. A bank
    that cannot go on (not enough memory) makes no run fail: its members begin again by themselves. Raises Interrupted
    if asked to stop: the members that had not ended have saved their state.
    """
    where: dict[str, Any] = {"checkout": checkout, "store": store, "stop_requested": stop_requested, "job": job}
    left = _together(runs, settings, on_ended=on_ended, **where)
    for number in left:  # what the bank held is gone: nothing of it is left here
        on_ended(number, _by_itself(runs[number], settings, **where))


def _together(
    runs: Sequence[BankRun],
    settings: ExecSpec,
    *,
    checkout: Path,
    store: Store,
    on_ended: Callable[[int, Ended], None],
    stop_requested: Callable[[], bool],
    job: Job | None,
) -> list[int]:
    """Trains, tests and publishes the runs; returns the places of those that are to begin again by themselves."""
    code = provenance.code_of_this_process()
    left: list[int] = []
    with ExitStack() as everything:
        members: list[_Member] = []
        for number, run in enumerate(runs):
            stack = everything.enter_context(ExitStack())
            since = time.monotonic()
            try:
                record, attempt = begin(
                    run.spec, settings, checkout=checkout, store=store, job=job, dead_up_to=run.dead_up_to
                )
                if attempt is None:
                    assert record is not None
                    on_ended(number, record)
                    continue
                own = stack.enter_context(
                    attempted(
                        run.spec, settings, attempt, checkout=checkout, store=store, code=code, tags=run.tags,
                        stop_requested=stop_requested, keep_base=True, share_base=True,
                    )
                )  # fmt: skip
                with _failing(stack):
                    module: Any = kinds.of(run.spec)
                    ready = module.prepare(run.spec, own.context)
            except (RunFailed, UserError, AlreadyRunning) as error:
                on_ended(number, error)
                continue
            members.append(_Member(number, run, stack, own, ready, time.monotonic() - since))
        for group in _by_step(members):
            try:
                outcomes = _train(group)
            except Interrupted:
                raise
            except Exception as error:  # whether a run itself is at fault shows when it is alone
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                _LOG.warning("a bank of %d runs ended (%s); they begin again one by one", len(group), reason)
                for member in group:
                    member.stack.__exit__(BankEnded, BankEnded(f"the bank ended: {reason}"), None)
                left += [member.number for member in group]
                continue
            for member, outcome in zip(group, outcomes, strict=True):
                on_ended(member.number, _finish(member, outcome, store))
    return left


@contextmanager
def _failing(stack: ExitStack) -> Iterator[None]:
    """An error in here is one attempt's own: it ends that attempt, and is raised as what it came to."""
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        stack.__exit__(*sys.exc_info())
        raise


def _by_step(members: Sequence[_Member]) -> list[list[_Member]]:
    """Those of one step together."""
    groups: dict[int, list[_Member]] = defaultdict(list)
    for member in members:
        groups[member.ready.run.state.step].append(member)
    return list(groups.values())


def _train(group: Sequence[_Member]) -> list[Callable[[], Outcome]]:
    """Trains a group; returns what tests each member and gives its outcome."""
    since = time.monotonic()
    try:
        if len(group) == 1:
            raise NotBankable("no other run is at its step")
        ended = train_together([member.ready for member in group])
    except NotBankable as reason:
        if len(group) > 1:
            _LOG.warning("%d runs are trained one by one: %s", len(group), reason)
        return [_alone(member.ready) for member in group]
    for member in group:
        member.seconds += (time.monotonic() - since) / len(group)
        member.own.bank = [other.own.identity for other in group]
    return [
        partial(member.ready.ended, how) if isinstance(how, Diverged) else how
        for member, how in zip(group, ended, strict=True)
    ]


def _alone(ready: Prepared) -> Callable[[], Outcome]:
    return lambda: train_alone(ready)


def _finish(member: _Member, outcome: Callable[[], Outcome], store: Store) -> Ended:
    """Tests and publishes one member; what fails there is its own."""
    try:
        with member.timed(), _failing(member.stack):
            member.own.outcome = outcome()
        member.own.seconds = member.seconds
        with _failing(member.stack):
            member.stack.close()
    except RunFailed as error:
        return error
    return published(member.own, store, member.run.spec.kind)[0]


def _by_itself(run: BankRun, settings: ExecSpec, **where: Any) -> Ended:
    try:
        return execute(run.spec, settings, tags=run.tags, dead_up_to=run.dead_up_to, keep_base=True, **where)[0]
    except (RunFailed, UserError, AlreadyRunning) as error:
        return error

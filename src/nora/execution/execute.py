"""One run from a spec to a published record, in an attempt of its own."""

from __future__ import annotations

import json
import logging
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nora import kinds
from nora.config.schema import ExecSpec
from nora.config.spec import run_id, spec_dict
from nora.errors import AlreadyRunning, BankEnded, Interrupted, RunFailed, UserError
from nora.execution import provenance
from nora.execution.checkpoint import CheckpointWriter
from nora.execution.progress import Reporter
from nora.execution.tracker import open_tracker
from nora.files import Json, canonical_json, sha256_bytes
from nora.kinds import Spec
from nora.kinds.parts.recipe import Outcome, RunContext, Update, train_alone
from nora.store.attempt import Attempt, Job
from nora.store.record import Record
from nora.store.runs import Store, refusal
from nora.store.states import State, run_state

if TYPE_CHECKING:
    from nora.training.replicas import Replicas


_LOG = logging.getLogger(__name__)


def choose_device(settings: ExecSpec) -> torch.device:
    """The device ``exec.device`` asks for; RunFailed where it is not there."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise RunFailed("exec.device=cuda: no CUDA device is visible here; use exec.device=auto or cpu")
    name = settings.device if settings.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _rival(attempt: Attempt, store: Store, kind: str, identity: str, dead_up_to: int) -> Attempt | None:
    """The live attempt of a lower number, if any. An earlier start of this SLURM job is dead, as is what is known to
    be (``dead_up_to``): neither process is on this host to be asked."""
    job = attempt.owner().get("job")
    for other in store.attempts(kind, identity):
        known_dead = other.number <= dead_up_to or (job is not None and other.owner().get("job") == job)
        if other.number < attempt.number and not known_dead and other.is_alive():
            return other
    return None


def _device_gib(device: torch.device) -> float | None:
    """Of a GPU; None of a machine whose memory is not the run's alone."""
    return torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else None


def fitted(settings: ExecSpec, spec: Spec, device_gib: float | None) -> ExecSpec:
    """With the part of a batch that a device of so much memory computes at once, as `nora plan` says it, and ten steps
    read from it at once; what is typed stays, and so does everything where no device has a memory of its own (None)."""
    if device_gib is None:
        return settings
    micro = settings.micro_batch_size or kinds.fit(spec, device_gib).micro_batch_size
    return replace(settings, micro_batch_size=micro, read_every=settings.read_every or 10)


def _peak_memory_gib(device: torch.device) -> float:
    """Of the device where it is one, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass
class Attempted:
    """A run in an attempt of its own: where it executes, and in the end what it found out."""

    identity: str
    context: RunContext
    outcome: Outcome | None = None
    seconds: float | None = None
    """Of work that was this run's alone, or its share; None: all since the attempt began."""
    bank: Sequence[str] | None = None
    """The ids of the runs that were trained in one step each with it."""
    record: Record | None = None
    made: bool = False


@contextmanager
def attempted(
    spec: Spec,
    settings: ExecSpec,
    attempt: Attempt,
    *,
    checkout: Path,
    store: Store,
    code: Mapping[str, Json],
    tags: tuple[str, ...],
    show: Callable[[Update], None] = lambda update: None,
    **given: Any,
) -> Iterator[Attempted]:
    """Yields where the run executes and publishes the outcome that is put there; an attempt that ends otherwise says
    how. ``given``: the rest of RunContext."""
    kind, identity = spec.kind, run_id(spec)
    earlier = [a.path for a in store.attempts(kind, identity) if a.number != attempt.number]
    started, wall = time.monotonic(), time.time()
    device = choose_device(settings)
    settings = fitted(settings, spec, _device_gib(device))
    try:
        with (
            open_tracker(spec, settings, attempt, identity, tags) as tracker,
            Reporter(attempt, tracker, show) as reporter,
            CheckpointWriter(attempt.path, earlier, run=identity) as checkpoints,
        ):
            context = RunContext(
                checkout=checkout,
                settings=settings,
                device=device,
                attempt=attempt,
                checkpoints=checkpoints,
                report=reporter,
                show_picture=reporter.picture,
                **given,
            )
            own = Attempted(identity, context)
            yield own
            assert own.outcome is not None
            result = _publish_files(spec_dict(spec), own.outcome, identity, store)
            for name, content in own.outcome.beside.items():
                store.publish_file(kind, identity, name, content)
            tracker.summary(result)
        run = {
            **own.outcome.run,
            **provenance.machine(device.type, settings.threads),
            **code,
            "libraries": provenance.library_versions(),
            **({"micro_batch_size": settings.micro_batch_size} if settings.micro_batch_size else {}),
            "attempt": attempt.number,
            "job": attempt.owner().get("job"),
            "started": wall,
            "wall_seconds": time.monotonic() - started if own.seconds is None else own.seconds,
            "peak_memory_gib": _peak_memory_gib(device),
            "tags": list(tags),
            **({"bank": list(own.bank)} if own.bank else {}),
        }
        own.record = Record(identity, result, run)
        own.made = store.publish_record(own.record)
        attempt.finish()
    except Interrupted as error:
        with _ending(attempt):
            attempt.interrupt(str(error))
        raise
    except BankEnded as error:
        with _ending(attempt):
            attempt.interrupt(str(error))
    except Exception as error:
        with _ending(attempt):
            attempt.fail(f"{type(error).__name__}: {error}", traceback.format_exc())
        if isinstance(error, RunFailed):
            raise
        raise RunFailed(f"run {identity}: {type(error).__name__}: {error} (see {attempt.path}/failed.json)") from error
    except BaseException as error:  # Ctrl-C and the like
        with _ending(attempt):
            attempt.interrupt(f"{type(error).__name__}")
        raise


@contextmanager
def _ending(attempt: Attempt) -> Iterator[None]:
    """How an attempt ended is still raised where it cannot be written."""
    try:
        yield
    except OSError as error:
        _LOG.warning("%s: how it ended could not be written (%s)", attempt.path, error.strerror or error)


def execute(
    spec: Spec,
    settings: ExecSpec,
    *,
    checkout: Path,
    store: Store,
    show: Callable[[Update], None] = lambda update: None,
    tags: tuple[str, ...] = (),
    stop_requested: Callable[[], bool] = lambda: False,
    job: Job | None = None,
    dead_up_to: int = 0,
    keep_base: bool = False,
    replicas: Replicas | None = None,
) -> tuple[Record, bool]:
    """The run's record, and whether this call made it (False: it was there already and nothing was done).

    ``job`` is the SLURM job this runs in, ``dead_up_to`` the last attempt that SLURM has said to be dead. Raises
    RunFailed with one line if the work fails (the attempt then says why), Interrupted if it was asked to stop
    and saved its state, AlreadyRunning if a live attempt has the run. A diverged run has a record.
    """
    code = provenance.code_of_this_process()  # first of all: what is edited from here on is not what runs
    existing, attempt = begin(
        spec, settings, checkout=checkout, store=store, job=job, dead_up_to=dead_up_to, replicas=replicas
    )
    if attempt is None:
        assert existing is not None
        return existing, False
    with attempted(
        spec, settings, attempt, checkout=checkout, store=store, code=code, tags=tags, show=show,
        stop_requested=stop_requested, keep_base=keep_base, replicas=replicas,
    ) as own:  # fmt: skip
        module: Any = kinds.of(spec)
        if hasattr(module, "prepare"):
            own.outcome = train_alone(module.prepare(spec, own.context))
        else:
            own.outcome = module.execute(spec, own.context)
    return published(own, store, spec.kind)


def published(own: Attempted, store: Store, kind: str) -> tuple[Record, bool]:
    """The record of the run and whether this attempt made it."""
    assert own.record is not None
    if not own.made:
        existing = store.read(kind, own.record.id)
        return (existing if existing is not None else own.record), False
    return own.record, True


def begin(
    spec: Spec,
    settings: ExecSpec,
    *,
    checkout: Path,
    store: Store,
    job: Job | None,
    dead_up_to: int,
    replicas: Replicas | None = None,
) -> tuple[Record, None] | tuple[None, Attempt]:
    """The record of a run that is done, or a new attempt at it. AlreadyRunning if a live attempt has the run."""
    kinds.check_exec(spec, settings)
    kinds.check_ready(spec)
    kinds.check_inputs(spec, checkout)
    kind, identity = spec.kind, run_id(spec)
    existing = _finished(store, kind, identity)
    if replicas is not None:  # the others have stores of their own, and none of them may wait for one that is done
        existing = replicas.agree(existing)
    if existing is not None:
        return existing, None
    torch.set_num_threads(settings.threads)
    choose_device(settings)
    attempt = _own_attempt(store, kind, identity, job=job, dead_up_to=dead_up_to)
    store.clear_leftovers(kind, identity, before=attempt)
    existing = _finished(store, kind, identity, quiet=True)
    if existing is not None:  # a rival finished between the first look and the attempt
        attempt.interrupt("another attempt has published the run")
        return existing, None
    return None, attempt


def _own_attempt(store: Store, kind: str, identity: str, *, job: Job | None, dead_up_to: int) -> Attempt:
    """A new attempt; AlreadyRunning if one before it is alive."""
    try:
        attempt = store.new_attempt(kind, identity, job=job)
    except OSError as error:
        why = refusal(error) if isinstance(error, PermissionError) else error
        raise RunFailed(f"run {identity}: no attempt could be started: {why}") from error
    rival = _rival(attempt, store, kind, identity, dead_up_to)
    if rival is not None:
        attempt.interrupt(f"attempt {rival.number} has the run")
        raise AlreadyRunning(f"run {identity} is running: attempt {rival.number} on {rival.owner().get('host')}")
    return attempt


def _finished(store: Store, kind: str, identity: str, *, quiet: bool = False) -> Record | None:
    """The run's record if it counts; what is damaged is said and counts as not there. UserError for one that a newer
    version wrote."""
    found = run_state(store, kind, identity)
    if found.state is State.NEWER:
        raise UserError(found.reason)
    if found.state is State.DAMAGED and not quiet:
        _LOG.warning("%s: the run is repeated", found.reason)
    return found.record


def _publish_files(plain: dict[str, Json], outcome: Outcome, identity: str, store: Store) -> dict[str, Json]:
    """Writes the files that are kept; returns the record's ``result``, as it will be read back."""
    files: dict[str, Json] = {}
    for label, file in outcome.files.items():
        # Named and hashed alike whether kept or not: what exec keeps must not show in the result.
        digest = sha256_bytes(file.content)
        name = f"{file.stem}.{digest[:8]}{file.suffix}"
        files[label] = {"name": name, "sha256": digest}
        if file.keep:
            store.publish_file(plain["kind"], identity, name, file.content)
        else:
            store.drop_damaged_file(plain["kind"], identity, name, digest)
    result: dict[str, Json] = {
        "spec": plain,
        "status": "diverged" if outcome.diverged else "done",
        "metrics": outcome.metrics,
        "proof": outcome.proof,
        "files": files,
    }
    if outcome.diverged:
        result["diverged"] = outcome.diverged
    read_back: dict[str, Json] = json.loads(canonical_json(result))
    return read_back

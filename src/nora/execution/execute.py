"""One run from a spec to a published record, in an attempt of its own."""

from __future__ import annotations

import json
import logging
import resource
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nora import kinds
from nora.config.schema import ExecSpec, Spec
from nora.config.spec import check_inputs, check_ready, describe, run_id, spec_dict
from nora.errors import AlreadyRunning, Interrupted, RunFailed
from nora.execution import provenance
from nora.execution.checkpoint import CheckpointWriter
from nora.execution.progress import Reporter
from nora.execution.tracker import open_mirror
from nora.files import canonical_json, sha256_bytes
from nora.kinds.recipe import Outcome, RunContext, Update
from nora.store.attempt import Attempt
from nora.store.record import DamagedRecord, Record
from nora.store.runs import Store

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


def _peak_memory_gib(device: torch.device) -> float:
    """Of the device where it is one, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def execute(
    spec: Spec,
    settings: ExecSpec,
    *,
    checkout: Path,
    store: Store,
    show: Callable[[Update], None] = lambda update: None,
    tags: tuple[str, ...] = (),
    stop_requested: Callable[[], bool] = lambda: False,
    job: str | None = None,
    dead_up_to: int = 0,
    keep_base: bool = False,
    replicas: Replicas | None = None,
) -> tuple[Record, bool]:
    """The run's record, and whether this call made it (False: it was there already and nothing was done).

    ``job`` is the SLURM job this runs in, ``dead_up_to`` the last attempt that SLURM has said to be dead. Raises
    RunFailed with one line where the work fails (the attempt then says why), Interrupted where it was asked to stop
    and saved its state, AlreadyRunning where a live attempt has the run. A diverged run has a record.
    """
    check_ready(spec)
    check_inputs(spec, checkout)
    identity = run_id(spec)
    kind = spec.kind
    existing = _finished(store, kind, identity)
    if replicas is not None:  # the others have stores of their own, and none of them may wait for one that is done
        existing = replicas.agree(existing)
    if existing is not None:
        return existing, False
    torch.set_num_threads(settings.threads)
    device = choose_device(settings)
    try:
        attempt = store.new_attempt(kind, identity, job=job)
    except OSError as error:
        raise RunFailed(f"run {identity}: no attempt could be started: {error}") from error
    rival = _rival(attempt, store, kind, identity, dead_up_to)
    if rival is not None:
        attempt.interrupt(f"attempt {rival.number} has the run")
        raise AlreadyRunning(f"run {identity} is running: attempt {rival.number} on {rival.owner().get('host')}")
    existing = _published(store, kind, identity)
    if existing is not None and not store.verify_files(
        existing
    ):  # a rival finished between the first look and the attempt
        attempt.interrupt("another attempt has published the run")
        return existing, False
    try:
        record = _run(spec, settings, device, attempt, checkout, store, show, tags, stop_requested, keep_base, replicas)
        made = store.publish_record(record)
        attempt.finish()
    except Interrupted as error:
        attempt.interrupt(str(error))
        raise
    except Exception as error:
        try:
            attempt.fail(f"{type(error).__name__}: {error}", traceback.format_exc())
        except OSError:
            _LOG.warning("%s: the reason of the failure could not be written (disk full?)", attempt.path)
        if isinstance(error, RunFailed):
            raise
        raise RunFailed(f"run {identity}: {type(error).__name__}: {error} (see {attempt.path}/failed.json)") from error
    except BaseException as error:  # Ctrl-C and the like
        attempt.interrupt(f"{type(error).__name__}")
        raise
    if not made:
        existing = store.read(kind, identity)
        return (existing if existing is not None else record), False
    return record, True


def _finished(store: Store, kind: str, identity: str) -> Record | None:
    """The run's record where it and its files are whole; what is damaged is said and counts as not there."""
    try:
        record = store.read(kind, identity)
        problems = [] if record is None else store.verify_files(record)
    except DamagedRecord as error:
        record, problems = None, [str(error)]
    if problems:
        _LOG.warning("%s: the run is repeated", "; ".join(problems))
    return None if problems else record


def _published(store: Store, kind: str, identity: str) -> Record | None:
    try:
        return store.read(kind, identity)
    except DamagedRecord:
        return None


def _run(
    spec: Spec,
    settings: ExecSpec,
    device: torch.device,
    attempt: Attempt,
    checkout: Path,
    store: Store,
    show: Callable[[Update], None],
    tags: tuple[str, ...],
    stop_requested: Callable[[], bool],
    keep_base: bool,
    replicas: Replicas | None,
) -> Record:
    """The work of one attempt: the record it made, its files published, the record itself not yet."""
    identity, kind = run_id(spec), spec.kind
    plain = spec_dict(spec)
    words = describe(plain)
    started, wall = time.monotonic(), time.time()
    mirror = open_mirror(
        settings.wandb,
        project=settings.wandb_project,
        run_id=identity,
        group=words["group"],
        name=f"{words['what']} on {words['on']}, seed {plain['seed']}, {identity[:6]}",
        tags=[kind, *words["tags"].split(), *tags],
        config=plain,
        folder=attempt.path,
    )
    earlier = tuple(a for a in store.attempts(kind, identity) if a.number != attempt.number)
    status: dict[str, Any] = {"status": "failed"}
    try:
        reporter = Reporter(attempt, mirror, show)
        try:
            with CheckpointWriter(attempt.path, (a.path for a in earlier)) as checkpoints:
                context = RunContext(
                    checkout,
                    settings,
                    device,
                    attempt,
                    checkpoints,
                    reporter,
                    stop_requested,
                    keep_base,
                    replicas,
                    reporter.picture,
                )
                outcome: Outcome = kinds.load(kind).execute(spec, context)
        finally:
            reporter.close()
        record = _make_record(identity, plain, outcome, store=store)
        status = {"status": record.status, **_flat(record.metrics)}
    except Interrupted:
        status = {"status": "interrupted"}
        raise
    finally:
        mirror.finish(status)
    run = {
        **outcome.run,
        **provenance.machine(device.type, settings.threads),
        **provenance.code_version(checkout),
        "libraries": provenance.library_versions(),
        "attempt": attempt.number,
        "job": attempt.owner().get("job"),
        "started": wall,
        "wall_seconds": time.monotonic() - started,
        "peak_memory_gib": _peak_memory_gib(device),
        "tags": list(tags),
    }
    return Record(record.id, record.result, run)


def _make_record(identity: str, plain: dict[str, Any], outcome: Outcome, *, store: Store) -> Record:
    files: dict[str, Any] = {}
    for label, (stem, suffix, data, keep) in outcome.files.items():
        # Named and hashed alike whether kept or not: what exec keeps must not show in the result.
        digest = sha256_bytes(data)
        files[label] = {"name": f"{stem}.{digest[:8]}{suffix}", "sha256": digest}
        if keep:
            store.publish_file(plain["kind"], identity, files[label]["name"], data)
        else:
            store.drop_damaged_file(plain["kind"], identity, files[label]["name"], digest)
    result: dict[str, Any] = {
        "spec": plain,
        "status": "diverged" if outcome.diverged else "done",
        "metrics": outcome.metrics,
        "proof": outcome.proof,
        "files": files,
    }
    if outcome.diverged:
        result["diverged"] = outcome.diverged
    return Record(identity, json.loads(canonical_json(result)), {})  # as it will be read back


def _flat(metrics: Any, prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
    return flat

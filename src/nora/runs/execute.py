"""One run from a spec to a published record, in an attempt of its own."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nora.runs import kinds, provenance
from nora.runs.context import Outcome, RunContext, Update
from nora.runs.errors import RunFailed
from nora.runs.files import canonical_json, sha256_bytes
from nora.runs.mirror import open_mirror
from nora.runs.record import DamagedRecord, Record
from nora.runs.schema import ExecSpec, Spec
from nora.runs.spec import check_ready, describe, run_id, spec_dict
from nora.runs.store import HEARTBEAT_SECONDS, Attempt, Store

_LOG = logging.getLogger(__name__)


class _Reporter:
    """Journal, heartbeat, mirror and progress of one attempt."""

    def __init__(self, attempt: Attempt, mirror: Any, show: Callable[[Update], None]) -> None:
        self._attempt = attempt
        self._mirror = mirror
        self._show = show
        self._file = attempt.journal.open("a", encoding="utf-8")
        self._last_beat = time.monotonic()

    def __call__(self, update: Update) -> None:
        line = {"phase": update.phase, "step": update.step, "total": update.total, **update.values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if time.monotonic() - self._last_beat > HEARTBEAT_SECONDS:
            self._attempt.beat()
            self._last_beat = time.monotonic()
        if update.values:
            self._mirror.log(update.values, update.step)
        self._show(update)

    def close(self) -> None:
        self._file.close()


def choose_device(settings: ExecSpec) -> torch.device:
    """The device ``exec.device`` asks for; RunFailed where it is not there."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise RunFailed("exec.device=cuda: no CUDA device is visible here; use exec.device=auto or cpu")
    name = settings.device if settings.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def execute(
    spec: Spec,
    settings: ExecSpec,
    *,
    checkout: Path,
    store: Store,
    show: Callable[[Update], None] = lambda update: None,
    tags: tuple[str, ...] = (),
) -> tuple[Record, bool]:
    """The run's record, and whether this call made it (False: it was there already and nothing was done).

    Raises RunFailed with one line where the work fails; the attempt then says why. A diverged run has a record.
    """
    check_ready(spec)
    identity = run_id(spec)
    kind = spec.kind
    try:
        existing = store.read(kind, identity)
    except DamagedRecord as error:
        _LOG.warning("%s: the run is repeated", error)
        existing = None
    if existing is not None:
        return existing, False
    torch.set_num_threads(settings.threads)
    device = choose_device(settings)
    earlier = tuple(store.attempts(kind, identity))
    attempt = store.new_attempt(kind, identity)
    plain = spec_dict(spec)
    words = describe(plain)
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
    reporter = _Reporter(attempt, mirror, show)
    started = time.time()
    try:
        outcome: Outcome = kinds.load(kind).execute(
            spec, RunContext(checkout, settings, device, attempt, earlier, reporter)
        )
    except Exception as error:
        attempt.fail(f"{type(error).__name__}: {error}", traceback.format_exc())
        mirror.finish({"status": "failed"})
        if isinstance(error, RunFailed):
            raise
        raise RunFailed(f"run {identity}: {type(error).__name__}: {error} (see {attempt.path}/failed.json)") from error
    finally:
        reporter.close()
    record = _make_record(identity, plain, outcome, store=store)
    record = Record(
        record.id,
        record.result,
        {
            **outcome.run,
            **provenance.machine(device.type, settings.threads),
            **provenance.code_version(checkout),
            "libraries": provenance.library_versions(),
            "attempt": attempt.number,
            "started": started,
            "wall_seconds": time.time() - started,
            "tags": list(tags),
        },
    )
    made = store.publish_record(record)
    mirror.finish({"status": record.status, **_flat(record.metrics)})
    if not made:
        existing = store.read(kind, identity)
        return (existing if existing is not None else record), False
    return record, True


def _make_record(identity: str, plain: dict[str, Any], outcome: Outcome, *, store: Store) -> Record:
    files: dict[str, Any] = {}
    for label, (stem, suffix, data, keep) in outcome.files.items():
        # Named and hashed alike whether kept or not: what exec keeps must not show in the result.
        digest = sha256_bytes(data)
        files[label] = {"name": f"{stem}.{digest[:8]}{suffix}", "sha256": digest}
        if keep:
            store.publish_file(plain["kind"], identity, files[label]["name"], data)
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

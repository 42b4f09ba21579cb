"""A copy of a run's numbers for Weights & Biases: best effort, never read back, never in a run's way."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from nora import kinds
from nora.config.schema import ExecSpec
from nora.config.spec import spec_dict
from nora.errors import Interrupted, RunFailed, UserError
from nora.files import DamagedFile, Json, canonical_json, read_json, sha256_bytes, write_atomic
from nora.kinds import Spec
from nora.store.attempt import Attempt
from nora.store.runs import Store, read_json_lines
from nora.store.states import run_state

WandbRun = Any
"""What ``wandb.init`` returns."""
_LOG = logging.getLogger(__name__)
_INIT_SECONDS = 15
_FINISH_SECONDS = 30


class Tracker:
    """Where a run's numbers are copied to; this one, of exec.wandb=none, copies nothing."""

    def __init__(self) -> None:
        self._summary: dict[str, Json] = {"status": "failed"}

    def log(self, values: Mapping[str, Json], step: int) -> None:
        """Numbers of one step."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """A picture made on the way."""

    def summary(self, result: Mapping[str, Json]) -> None:
        """What the run came to: status and every number of its metrics."""
        self._summary = {"status": result["status"], **_numbers(result["metrics"])}

    def finish(self) -> None:
        """Hands over what is left."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Interrupted):
            self._summary = {"status": "interrupted"}
        self.finish()


class WandbTracker(Tracker):
    """An offline or online W&B run with the run's own id, fed by a thread of its own: a server that does not answer
    delays nothing. The thread starts with the first numbers, since importing W&B takes a second of every thread's time.
    The first error is told once and ends the tracking."""

    def __init__(self, start: Callable[[], WandbRun]) -> None:
        super().__init__()
        self._start = start
        self._calls: queue.SimpleQueue[Callable[[WandbRun], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._started = False
        self._given_up = False

    def _put(self, call: Callable[[WandbRun], None] | None) -> None:
        self._calls.put(call)
        if not self._started:
            self._started = True
            self._thread.start()

    def _work(self) -> None:
        try:
            run = self._start()
            while (call := self._calls.get()) is not None:
                call(run)
        except ImportError:
            _LOG.warning("W&B is not installed (pip install wandb): this run is not mirrored")
        except Exception as error:  # W&B may raise anything; a copy must not end a run
            if self._given_up:  # that was said, and once is enough
                return
            said = " ".join(str(error).split()) or type(error).__name__
            _LOG.warning("W&B: %s; this run is not mirrored further, its record is not affected", said)

    def log(self, values: Mapping[str, Json], step: int) -> None:
        self._put(lambda run: run.log(values, step=step))

    def picture(self, name: str, path: Path, step: int) -> None:
        def send(run: WandbRun) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))}, step=step)

        self._put(send)

    def finish(self) -> None:
        """Hands over what is left, waiting a bounded time for it."""

        def close(run: WandbRun) -> None:
            run.summary.update(self._summary)
            run.finish()

        self._put(close)
        self._put(None)
        self._thread.join(_FINISH_SECONDS)
        if self._thread.is_alive():
            self._given_up = True
            _LOG.warning("W&B: no answer within %d s; `nora sync-wandb` brings the rest", _FINISH_SECONDS)


def _numbers(metrics: Mapping[str, Json], prefix: str = "") -> dict[str, float]:
    """Every number of nested metrics under its path."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = value
    return found


def open_run(mode: str, *, project: str, run_id: str, folder: Path, **describing: Json) -> WandbRun:
    """A W&B run under our own id; raises what W&B raises. Online without a key becomes offline, with a warning."""
    # W&B's reports about itself go to its server even when offline; a compute node may have no network.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")  # what is to be said of it we say, in one line
    import wandb

    if mode == "online" and not _has_key(wandb):
        _LOG.warning("W&B: no API key configured; logging offline into %s", folder)
        mode = "offline"
    return wandb.init(
        project=project,
        id=run_id,
        dir=os.environ.get("WANDB_DIR") or str(folder),
        mode=mode,  # type: ignore[arg-type]
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(init_timeout=_INIT_SECONDS, console="off", silent=True, **_bounded_end(wandb)),
        **describing,
    )


def _has_key(wandb: Any) -> bool:
    """Whether a key of W&B's is configured, asking nobody for one."""
    if hasattr(wandb, "login"):
        with suppress(TypeError):  # an older W&B, which cannot be asked so
            return bool(wandb.login(prompt=False, verify=False))
    return wandb.api.api_key is not None


def _bounded_end(wandb: Any) -> dict[str, Any]:
    """W&B itself waits at the end of the process for all that it has not uploaded, however long it takes; with this, in
    versions that have it, no longer than we do."""
    known = getattr(wandb.Settings, "model_fields", ())
    return {k: v for k, v in {"finish_timeout": _FINISH_SECONDS, "finish_timeout_raises": True}.items() if k in known}


def describing(spec: Spec, identity: str, *tags: str) -> dict[str, Json]:
    """How W&B groups and names a run."""
    label = kinds.of(spec).label(spec)
    return {
        "group": f"{spec.protocol.name}/{label.on}",
        "name": f"{kinds.title(spec)}, {identity[:6]}",
        "tags": [spec.kind, *tags],
        "config": spec_dict(spec),
    }


def open_tracker(spec: Spec, settings: ExecSpec, attempt: Attempt, identity: str, tags: Sequence[str] = ()) -> Tracker:
    """The tracker ``exec.wandb`` asks for, at once; with one warning and no copy if W&B is not there or silent."""
    if settings.wandb == "none":
        return Tracker()
    words = describing(spec, identity, *kinds.of(spec).label(spec).names, *tags)
    return WandbTracker(
        partial(open_run, settings.wandb, project=settings.wandb_project, run_id=identity, folder=attempt.path, **words)
    )


def history(store: Store, kind: str, identity: str) -> dict[int, dict[str, float]]:
    """Step → values over all attempts: a later attempt goes on where an earlier one stopped."""
    steps: dict[int, dict[str, float]] = {}
    for attempt in store.attempts(kind, identity):
        for line in read_json_lines(attempt.journal):
            values = {key: value for key, value in line.items() if key not in ("phase", "step", "total")}
            if values:
                steps[line["step"]] = values
    return dict(sorted(steps.items()))


def _summary(store: Store, kind: str, identity: str) -> dict[str, Json]:
    found = run_state(store, kind, identity)
    scores = {} if found.record is None else found.record.metrics.get("test", {})
    return {"status": found.state, **{f"test/{k}": v for k, v in scores.items()}}


def sync(store: Store, specs: Mapping[str, Spec], *, project: str, dry_run: bool) -> list[str]:
    """Uploads every run that has something new; one line per run. UserError without W&B or a key, RunFailed where the
    server does not take a run (what was uploaded before it is noted)."""
    lines = []
    for identity, spec in specs.items():
        kind = spec.kind
        steps = history(store, kind, identity)
        if not steps:
            continue
        summary = _summary(store, kind, identity)
        digest = sha256_bytes(canonical_json([list(steps.items()), summary]).encode())
        note = store.root / "wandb" / project / f"{identity}.json"
        with suppress(OSError, DamagedFile):  # then it is uploaded again
            if read_json(note, {}).get("sha256") == digest:
                continue
        if dry_run:
            lines.append(f"{identity}: {len(steps)} steps would be uploaded")
            continue
        note.parent.mkdir(parents=True, exist_ok=True)
        try:
            run = open_run(
                "online", project=project, run_id=identity, folder=note.parent,
                **describing(spec, identity, kinds.of(spec).label(spec).what),
            )  # fmt: skip
            for step, values in steps.items():
                run.log(values, step=step)
            run.summary.update(summary)
            run.finish()
        except ImportError:
            raise UserError("W&B is not installed here: pip install wandb") from None
        except Exception as error:  # W&B may raise anything
            raise RunFailed(f"W&B did not take {identity}: {error}; {len(lines)} runs before it are uploaded") from None
        write_atomic(note, json.dumps({"sha256": digest, "steps": len(steps)}))
        lines.append(f"{identity}: {len(steps)} steps, {summary['status']}")
    return lines

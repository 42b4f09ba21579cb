"""A copy of a run's numbers for Weights & Biases: best effort, never read back, never in a run's way."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nora.config.spec import describe
from nora.errors import RunFailed, UserError
from nora.files import canonical_json, sha256_bytes, write_atomic
from nora.store.record import DamagedRecord
from nora.store.runs import Store, read_json_lines

_LOG = logging.getLogger(__name__)
_INIT_SECONDS = 15
_FINISH_SECONDS = 30


class Mirror(Protocol):
    """Where a run's numbers are copied to."""

    def log(self, values: dict[str, Any], step: int) -> None: ...
    def picture(self, name: str, path: Path, step: int) -> None: ...
    def finish(self, summary: dict[str, Any]) -> None: ...


class NoMirror:
    """wandb=none."""

    def log(self, values: dict[str, Any], step: int) -> None:
        del values, step

    def picture(self, name: str, path: Path, step: int) -> None:
        del name, path, step

    def finish(self, summary: dict[str, Any]) -> None:
        del summary


class WandbMirror:
    """An offline or online W&B run with the run's own id, fed by a thread of its own: a server that does not answer
    delays nothing. The thread starts with the first numbers, since importing W&B takes a second of every thread's time.
    The first error is told once and ends the mirroring."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._calls: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._started = False

    def _put(self, call: Callable[[Any], None] | None) -> None:
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
        except Exception as error:  # W&B may raise anything; a mirror must not end a run
            _LOG.warning("W&B: %s; this run is not mirrored further, its record is not affected", error)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._put(lambda run: run.log(values, step=step))

    def picture(self, name: str, path: Path, step: int) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))}, step=step)

        self._put(send)

    def finish(self, summary: dict[str, Any]) -> None:
        """Hands over what is left, waiting a bounded time for it."""

        def close(run: Any) -> None:
            run.summary.update(summary)
            run.finish()

        self._put(close)
        self._put(None)
        self._thread.join(_FINISH_SECONDS)
        if self._thread.is_alive():
            _LOG.warning("W&B: no answer within %d s; `nora sync-wandb` brings the rest", _FINISH_SECONDS)


def open_run(mode: str, *, project: str, run_id: str, folder: Path, **describing: Any) -> Any:
    """A W&B run under our own id; raises what W&B raises. Online without a key becomes offline, with a warning."""
    # W&B's reports about itself go to its server even when offline; a compute node may have no network.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    if mode == "online" and wandb.api.api_key is None:
        _LOG.warning("W&B: no API key configured; logging offline into %s", folder)
        mode = "offline"
    return wandb.init(
        project=project,
        id=run_id,
        dir=str(folder),
        mode=mode,  # type: ignore[arg-type]
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(init_timeout=_INIT_SECONDS, console="off", silent=True),
        **describing,
    )


def open_mirror(
    mode: str,
    *,
    project: str,
    run_id: str,
    group: str,
    name: str,
    tags: list[str],
    config: dict[str, Any],
    folder: Path,
) -> Mirror:
    """The mirror ``exec.wandb`` asks for, at once; with one warning and no copy where W&B is not there or silent."""
    if mode == "none":
        return NoMirror()
    describing = {"group": group, "name": name, "tags": tags, "config": config}
    return WandbMirror(partial(open_run, mode, project=project, run_id=run_id, folder=folder, **describing))


def history(store: Store, kind: str, identity: str) -> dict[int, dict[str, float]]:
    """Step → values over all attempts: a later attempt goes on where an earlier one stopped."""
    steps: dict[int, dict[str, float]] = {}
    for attempt in store.attempts(kind, identity):
        for line in read_json_lines(attempt.journal):
            values = {key: value for key, value in line.items() if key not in ("phase", "step", "total")}
            if values:
                steps[line["step"]] = values
    return dict(sorted(steps.items()))


def _summary(store: Store, kind: str, identity: str) -> dict[str, Any]:
    try:
        record = store.read(kind, identity)
    except DamagedRecord:
        record = None
    if record is None:
        return {"status": store.state(kind, identity).state}
    return {"status": record.status, **{f"test/{k}": v for k, v in record.metrics.get("test", {}).items()}}


def sync(store: Store, specs: Mapping[str, Mapping[str, Any]], *, project: str, dry_run: bool) -> list[str]:
    """Uploads every run that has something new; one line per run. UserError without W&B or a key, RunFailed where the
    server does not take a run (what was uploaded before it is noted)."""
    lines = []
    for identity, spec in specs.items():
        kind = spec["kind"]
        steps = history(store, kind, identity)
        if not steps:
            continue
        summary = _summary(store, kind, identity)
        digest = sha256_bytes(canonical_json([list(steps.items()), summary]).encode())
        note = store.root / "wandb" / project / f"{identity}.json"
        if note.is_file() and json.loads(note.read_text()).get("sha256") == digest:
            continue
        if dry_run:
            lines.append(f"{identity}: {len(steps)} steps would be uploaded")
            continue
        note.parent.mkdir(parents=True, exist_ok=True)
        words = describe(spec)
        try:
            run = open_run(
                "online",
                project=project,
                run_id=identity,
                folder=note.parent,
                group=words["group"],
                name=f"{words['what']} on {words['on']}, seed {spec['seed']}, {identity[:6]}",
                config=dict(spec),
                tags=[kind, words["what"]],
            )
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

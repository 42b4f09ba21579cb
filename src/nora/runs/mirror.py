"""A copy of a run's numbers for Weights & Biases: best effort, never read back, never in a run's way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

_LOG = logging.getLogger(__name__)
_INIT_SECONDS = 15


class Mirror(Protocol):
    """Where a run's numbers are copied to."""

    def log(self, values: dict[str, Any], step: int) -> None: ...
    def finish(self, summary: dict[str, Any]) -> None: ...


class NoMirror:
    """wandb=none."""

    def log(self, values: dict[str, Any], step: int) -> None:
        del values, step

    def finish(self, summary: dict[str, Any]) -> None:
        del summary


class WandbMirror:
    """An offline or online W&B run with the run's own id; the first error is told once and ends the mirroring."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def _attempt(self, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # W&B may raise anything; a mirror must not end a run
            _LOG.warning("W&B: %s; this run is no longer mirrored, its record is not affected", error)
            self._run = None

    def log(self, values: dict[str, Any], step: int) -> None:
        self._attempt(lambda run: run.log(values, step=step))

    def finish(self, summary: dict[str, Any]) -> None:
        def close(run: Any) -> None:
            run.summary.update(summary)
            run.finish()

        self._attempt(close)


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
    """The mirror ``exec.wandb`` asks for; with one warning and no mirror where W&B is not there or does not answer."""
    if mode == "none":
        return NoMirror()
    try:
        import wandb

        if mode == "online" and wandb.api.api_key is None:
            _LOG.warning("W&B: no API key configured; logging offline into %s", folder)
            mode = "offline"
        run = wandb.init(
            project=project,
            id=run_id,
            group=group,
            name=name,
            tags=tags,
            config=config,
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(init_timeout=_INIT_SECONDS, console="off", silent=True),
        )
    except ImportError:
        _LOG.warning("W&B is not installed (pip install wandb): this run is not mirrored")
        return NoMirror()
    except Exception as error:  # no network, a refused key: the run goes on without its copy
        _LOG.warning("W&B did not start (%s): this run is not mirrored, its record is not affected", error)
        return NoMirror()
    return WandbMirror(run)

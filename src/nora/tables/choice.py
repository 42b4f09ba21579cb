"""Hyper-parameters by the best dev metric averaged over seeds; the test set is never looked at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nora.errors import UserError
from nora.files import Json
from nora.store.record import Record
from nora.tables.cell import Settings, read_yaml


def equal_rates(centre: float, budget: int) -> list[Json]:
    """``budget`` learning rates, √10 apart, whose geometric mean is ``centre``; three digits."""
    return [float(f"{centre * 10 ** ((i - (budget - 1) / 2) / 2):.3g}") for i in range(budget)]


def grid_points(grid: Mapping[str, Sequence[Json]]) -> list[Settings]:
    """The product of a grid, in the order written."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


@dataclass(frozen=True)
class Trial:
    """One setting and its dev outcome averaged over seeds (metric: higher is better; loss in nats)."""

    settings: Settings
    metric: float
    loss: float
    ids: tuple[str, ...]
    complete: bool
    diverged: int


def summarize(settings: Settings, records: Sequence[Record | None], *, metric: str) -> Trial:
    """A trial from its records over the seeds; it is complete if every seed has one."""
    present = [r for r in records if r is not None]
    finished = [r for r in present if r.status == "done" and "loss" in r.metrics.get("dev", ())]
    # A protocol that scores no answers on dev is ranked by its dev loss.
    values = [r.metrics["dev"].get(metric, -r.metrics["dev"]["loss"]) for r in finished]
    losses = [r.metrics["dev"]["loss"] for r in finished]
    usable = len(finished) == len(records)
    return Trial(
        settings=settings,
        metric=sum(values) / len(values) if usable else -math.inf,
        loss=sum(losses) / len(losses) if usable else math.inf,
        ids=tuple(r.id for r in present),
        complete=len(present) == len(records),
        diverged=sum(r.status == "diverged" for r in present),
    )


def choose(trials: Sequence[Trial]) -> Trial | None:
    """The best trial: highest metric; ties by lower dev loss, lower lr, smaller ξ. None until all are complete, or
    if every one diverged."""
    if not trials or not all(t.complete for t in trials):
        return None
    best = min(
        trials,
        key=lambda t: (
            -t.metric,
            t.loss,
            t.settings.get("protocol.lr", 0.0),
            t.settings.get("method.xi", 0.0),
            str(sorted(t.settings.items())),
        ),
    )
    return best if math.isfinite(best.metric) else None


def chosen_path(checkout: Path, table: str, scale: str) -> Path:
    """Where the committed choice of a table's hyper-parameters is."""
    return checkout / "conf" / "chosen" / f"{table}.{scale}.yaml"


def read_chosen(checkout: Path, table: str, scale: str) -> Mapping[str, Mapping[str, Settings]]:
    """task → method → settings; UserError if nothing was chosen yet."""
    path = chosen_path(checkout, table, scale)
    where = path.relative_to(checkout)
    if not path.is_file():
        raise UserError(f"{where}: not there yet; `nora collate tuning` writes it from the search")
    content = read_yaml(path)
    try:
        if (content["table"], content["scale"]) != (table, scale):
            raise UserError(f"{where}: foreign (the choice of {content['table']} at scale={content['scale']})")
        return {
            task: {method: entry["settings"] for method, entry in methods.items()}
            for task, methods in content["chosen"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: no choice ({error!r}); `nora collate tuning` writes it from the search") from None

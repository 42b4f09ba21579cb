"""``nora sync-wandb``: uploads runs from our own journals and records. What was uploaded is noted; twice is once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nora.runs import mirror
from nora.runs.errors import RunFailed, UserError
from nora.runs.files import canonical_json, sha256_bytes, write_atomic
from nora.runs.record import DamagedRecord
from nora.runs.spec import describe
from nora.runs.store import Store, read_json_lines


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
            run = mirror.open_run(
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

"""Each of the eight tasks trains, is killed inside an epoch and inside the last evaluation, and resumes identically."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nora import tasks
from nora.errors import RunFailed
from nora.files import canonical_json
from nora.kinds.parts.recipe import Update
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.verify import verify_record
from nora.tasks.metrics import score

Run = Callable[..., tuple[Record, bool]]


class _Killed(Exception):
    pass


def _kill(phase: str, step: int) -> Callable[[Update], None]:
    def show(update: Update) -> None:
        if (update.phase, update.step) == (phase, step):
            raise _Killed

    return show


@pytest.mark.parametrize("task", tasks.names("superglue"))
def test_killed_twice_and_identical(task: str, run: Run, tmp_path: Path) -> None:
    rows = ("task.num_train=6", "task.num_dev=4", "task.num_test=4", "method=nora_plus", "measure=[spectrum,zero_shot]")
    whole, _ = run(*rows, task=task, store=tmp_path / "whole")
    for phase, step in (("train", 3), ("test", 0)):
        with pytest.raises(RunFailed, match="_Killed"):
            run(*rows, "exec.checkpoint_every=1", task=task, store=tmp_path / "killed", show=_kill(phase, step))
    record, made = run(*rows, "exec.checkpoint_every=1", task=task, store=tmp_path / "killed")
    assert made and record.run["attempt"] == 3 and record.run["resumed_at_step"] == 4
    assert canonical_json(record.result) == canonical_json(whole.result)

    store = Store(tmp_path / "killed")
    metric = tasks.load("superglue", task).METRIC
    assert verify_record(store, record) == []
    path = store.run_dir("finetune", record.id) / record.result["files"]["predictions"]["name"]
    predictions = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert len(predictions) == 4 and score(metric, predictions) == record.metrics["test"][metric]
    assert {metric, "loss", "gold_nll"} <= set(record.metrics["dev"]) & set(record.metrics["zero_shot"])
    assert sum(record.metrics["spectrum"]["counts"]) + record.metrics["spectrum"]["beyond"] == 8 * 4

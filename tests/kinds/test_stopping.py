"""Asked to stop, or killed, at an awkward moment: the next start comes to the same result and repeats no training."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nora import files
from nora.config.spec import run_id
from nora.errors import Interrupted, RunFailed
from nora.execution.execute import execute
from nora.files import canonical_json
from nora.kinds import compose_run
from nora.kinds.parts.recipe import Update
from nora.store.runs import Store, read_json_lines
from nora.store.states import run_state

FACTORIZE = ["kind=factorize", "problem.m=60", "protocol.iterations=40", "exec.device=cpu", "exec.progress=false"]
FINETUNE = ["scale=smoke", "task=cb", "method=nora_plus", "exec.device=cpu", "exec.progress=false"]


KINDS = {
    "few_shot": FINETUNE,
    "instruct": ["scale=smoke", "protocol=metamath", "model=gemma_smoke", "task=gsm8k", *FINETUNE[3:]],
    "dreambooth": ["kind=dreambooth", "scale=smoke", "method=nora", *FINETUNE[3:]],
    "factorize": FACTORIZE,
    "deployment": ["kind=deployment", "adapter.init=kaiming", *FINETUNE[3:]],
}


def _execute(checkout: Path, words: list[str], folder: Path, **given: Any) -> Any:
    spec, settings, _ = compose_run(checkout, words)
    return execute(spec, settings, checkout=checkout, store=Store(folder), **given)[0]


def _after(polls: int) -> Callable[[], bool]:
    """``stop_requested`` that says yes from the given time on it is asked."""
    asked = itertools.count(1)
    return lambda: next(asked) > polls


@pytest.mark.parametrize("polls", [0, 17])
def test_a_factorisation_stops_between_steps_and_starts_afresh(polls: int, checkout: Path, tmp_path: Path) -> None:
    whole = _execute(checkout, FACTORIZE, tmp_path / "whole")
    store = Store(tmp_path / "stopped")
    with pytest.raises(Interrupted, match=f"stopped at step {polls}, it starts afresh"):
        _execute(checkout, FACTORIZE, store.root, stop_requested=_after(polls))
    assert run_state(store, "factorize", whole.id).state == "interrupted" and store.failures("factorize", whole.id) == 0
    record = _execute(checkout, FACTORIZE, store.root)
    assert canonical_json(record.result) == canonical_json(whole.result) and record.run["attempt"] == 2


def _train_steps(store: Store, identity: str) -> list[int]:
    lines = read_json_lines(store.attempts("finetune", identity)[-1].journal)
    return [line["step"] for line in lines if line["phase"] == "train"]


@pytest.mark.parametrize("task", ["cb", "squad"])
def test_a_stop_in_the_final_evaluation_is_followed_and_costs_no_training(
    task: str, checkout: Path, tmp_path: Path
) -> None:
    """Scored (CB) and generated (SQuAD) answers; asked for the first time when the last of the steps is done."""
    words = [*FINETUNE[:1], f"task={task}", *FINETUNE[2:]]
    whole = _execute(checkout, words, tmp_path / "whole")
    store = Store(tmp_path / "stopped")
    steps = whole.metrics["steps"]
    with pytest.raises(Interrupted, match=f"stopped at step {steps}, its state is saved"):
        _execute(checkout, words, store.root, stop_requested=_after(steps))
    record = _execute(checkout, words, store.root)
    assert record.run["resumed_at_step"] == steps and _train_steps(store, record.id) == []
    assert canonical_json(record.result) == canonical_json(whole.result)


def test_a_kill_in_the_final_evaluation_costs_no_training(checkout: Path, tmp_path: Path) -> None:
    """SIGKILL, so that nothing can be saved on the way out."""
    whole = _execute(checkout, FINETUNE, tmp_path / "whole")
    store = Store(tmp_path / "killed")

    def kill(update: Update) -> None:
        if update.phase == "test":
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            _execute(checkout, FINETUNE, store.root, show=kill)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    record = _execute(checkout, FINETUNE, store.root)
    assert record.run["resumed_at_step"] == whole.metrics["steps"] and _train_steps(store, record.id) == []
    assert canonical_json(record.result) == canonical_json(whole.result)


def test_a_deployment_stops_between_its_hosts(checkout: Path, tmp_path: Path) -> None:
    words = ["kind=deployment", "adapter.init=kaiming", "exec.device=cpu", "exec.progress=false"]
    with pytest.raises(Interrupted, match="it starts afresh"):
        _execute(checkout, words, tmp_path, stop_requested=lambda: True)
    identity = run_id(compose_run(checkout, words)[0])
    assert run_state(Store(tmp_path), "deployment", identity).state == "interrupted"


def test_a_failure_in_the_final_evaluation_is_retried_from_the_trained_state(checkout: Path, tmp_path: Path) -> None:
    def fail(update: Update) -> None:
        if update.phase == "test":
            raise OSError("a full disk, say")

    with pytest.raises(RunFailed, match="a full disk, say"):
        _execute(checkout, FINETUNE, tmp_path, show=fail)
    record = _execute(checkout, FINETUNE, tmp_path)
    assert record.run["resumed_at_step"] == record.metrics["steps"]


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EMFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k == "dreambooth")) for k in KINDS])
def test_a_stop_whose_disk_fails_is_an_end_with_a_name(
    kind: str, error: int, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the order on no file can be written: neither the state nor the reason. The next start needs no hand."""
    words, store, asked = KINDS[kind], Store(tmp_path), itertools.count()

    def stop() -> bool:
        if next(asked) == 0:

            def refused(directory: Path, data: object) -> Path:
                raise OSError(error, os.strerror(error), str(directory))

            monkeypatch.setattr(files, "_write_temporary", refused)
        return True

    with pytest.raises((Interrupted, RunFailed)):
        _execute(checkout, words, store.root, stop_requested=stop)
    monkeypatch.undo()
    (folder,) = store.run_dirs()
    state = run_state(store, folder.parent.name, folder.name)
    assert state.state in ("failed", "interrupted") and state.reason
    record = _execute(checkout, words, store.root)
    assert record.status == "done" and run_state(store, folder.parent.name, record.id).state == "done"
    assert not list(store.root.rglob(".tmp-*"))

"""Only the writing of a checkpoint runs beside the training: what is written, when it is waited for, what fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from nora.errors import Interrupted, RunFailed
from nora.execution import checkpoint
from nora.execution.checkpoint import CheckpointWriter, newest_valid, restore_checkpoint
from nora.execution.execute import execute
from nora.files import canonical_json, sha256_bytes, write_atomic
from nora.kinds import compose_run
from nora.kinds.parts.recipe import Update
from nora.store.runs import Store
from nora.training.loop import LoopSettings, LoopState, make_state

WORDS = ["scale=smoke", "task=cb", "method=nora_plus", "method.dropout=0.1", "exec.device=cpu", "exec.progress=false",
         "exec.checkpoint_every=1"]  # fmt: skip
SETTINGS = LoopSettings(
    lr=1e-2, batch_size=1, epochs=9, schedule="linear", warmup_steps=0, betas=(0.9, 0.999), eps=1e-8,
    weight_decay=0.0, max_grad_norm=1.0, precision="fp32",
)  # fmt: skip


def _execute(checkout: Path, folder: Path, **given: Any) -> Any:
    spec, settings, _ = compose_run(checkout, WORDS)
    return execute(spec, settings, checkout=checkout, store=Store(folder), **given)[0]


def _state() -> LoopState:
    torch.manual_seed(0)
    return make_state(torch.nn.Linear(3, 2), SETTINGS, num_examples=1, preconditioner=None)


def _step(state: LoopState) -> None:
    for parameter in state.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.scheduler.step()
    state.step += 1
    state.losses.append(float(state.step))


def _values(state: LoopState) -> list[Any]:
    moments = [m for p in state.parameters.values() for _, m in sorted(state.optimizer.state[p].items())]
    return [state.step, list(state.losses), *(t.clone() for t in (*state.parameters.values(), *moments))]


def _held_back(monkeypatch: pytest.MonkeyPatch, gate: threading.Event, started: list[Path]) -> None:
    def write(path: Path, data: bytes) -> None:
        started.append(path)
        assert gate.wait(30)
        write_atomic(path, data)

    monkeypatch.setattr(checkpoint, "write_atomic", write)


def test_what_is_written_is_the_state_of_the_step_it_was_saved_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, started, state = threading.Event(), [], _state()
    _held_back(monkeypatch, gate, started)
    with CheckpointWriter(tmp_path) as writer:
        _step(state)
        writer.save(state)
        saved = _values(state)
        _step(state)  # goes on while nothing is written yet
        assert list(tmp_path.iterdir()) == []
        gate.set()
    fresh = _state()
    path, unusable = newest_valid([tmp_path], fresh)
    assert path is not None and unusable == []
    restore_checkpoint(path, fresh)
    torch.testing.assert_close(_values(fresh), saved, rtol=0, atol=0)


def test_a_save_waits_for_the_write_before_it_and_two_generations_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, data: bytes) -> None:
        time.sleep(0.05)
        write_atomic(path, data)

    monkeypatch.setattr(checkpoint, "write_atomic", write)
    state = _state()
    with CheckpointWriter(tmp_path) as writer:
        for step in range(1, 6):
            _step(state)
            writer.save(state)
            assert step == 1 or list(tmp_path.glob(f"step-{step - 1:08d}.*"))
    assert [path.name[:13] for path in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize("failing", [1, 2, "last"])
def test_a_write_that_fails_is_a_failed_run(
    failing: Any, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _execute(checkout, tmp_path / "whole")
    step = whole.metrics["steps"] if failing == "last" else failing

    def write(path: Path, data: bytes) -> None:
        if path.name.startswith(f"step-{step:08d}"):
            raise OSError(28, "No space left on device")
        write_atomic(path, data)

    monkeypatch.setattr(checkpoint, "write_atomic", write)
    with pytest.raises(RunFailed, match="No space left on device"):
        _execute(checkout, tmp_path / "full")
    monkeypatch.undo()
    record = _execute(checkout, tmp_path / "full")
    assert record.run["resumed_at_step"] == (step - 1 or None)
    assert canonical_json(record.result) == canonical_json(whole.result)


def test_a_failure_of_the_run_is_not_hidden_by_one_of_its_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomic", write)
    with pytest.raises(ZeroDivisionError), CheckpointWriter(tmp_path) as writer:
        writer.save(_state())
        raise ZeroDivisionError
    assert "the last checkpoint could not be written: [Errno 28]" in caplog.text


def test_asked_to_stop_while_a_write_is_in_flight(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write in flight and the one of the stop are both on disk when the run says that it has stopped."""
    gate, started = threading.Event(), []
    _held_back(monkeypatch, gate, started)

    def asked() -> bool:
        if len(started) < 1:
            return False
        threading.Timer(0.3, gate.set).start()
        return True

    with pytest.raises(Interrupted):
        _execute(checkout, tmp_path, stop_requested=asked)
    (attempt,) = (tmp_path / "runs" / "finetune").glob("*/attempts/*")
    assert len(list(attempt.glob("step-*"))) == 2


def _dies_at(step: int) -> Callable[[Update], None]:
    def show(update: Update) -> None:
        if (update.phase, update.step) == ("train", step):
            os.kill(os.getpid(), signal.SIGKILL)

    return show


def test_killed_while_a_write_is_in_flight(checkout: Path, tmp_path: Path) -> None:
    """The write of step 3 hangs; killed in step 4: the generation before is whole, and the end is the same."""
    whole = _execute(checkout, tmp_path / "whole")

    def write(path: Path, data: bytes) -> None:
        if path.name.startswith("step-00000003"):
            threading.Event().wait()
        write_atomic(path, data)

    child = os.fork()
    if not child:
        try:
            checkpoint.write_atomic = write  # type: ignore[attr-defined]
            _execute(checkout, tmp_path / "killed", show=_dies_at(4))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    record = _execute(checkout, tmp_path / "killed")
    assert record.run["resumed_at_step"] == 2
    assert canonical_json(record.result) == canonical_json(whole.result)


def _renamed(path: Path, data: bytes) -> Path:
    """The same checkpoint with other content, under the name that is right for it."""
    path.unlink()
    renamed = path.with_name(f"{path.name.split('.')[0]}.{sha256_bytes(data)}.safetensors")
    renamed.write_bytes(data)
    return renamed


def _rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    _renamed(path, save(tensors, metadata=metadata))


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "link": (_link, "not a regular file"),
    "folder": (_folder, "not a regular file"),
    "FIFO": (_fifo, "not a regular file"),
    "empty": (lambda path: _renamed(path, b""), "SafetensorError"),
    "header of 2^60": (lambda path: _renamed(path, (1 << 60).to_bytes(8, "little") + b"{}"), "SafetensorError"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not what its name says"),
    "no tensor": (lambda path: _rewritten(path, lambda m, t: t.pop("parameter/weight")), "lacks parameter/weight"),
    "another shape": (
        lambda path: _rewritten(path, lambda m, t: t.update({"parameter/bias": torch.zeros(7)})),
        "given shape [7], required [2]",
    ),
    "no metadata": (lambda path: _rewritten(path, lambda m, t: m.clear()), "KeyError: 'state'"),
    "no scalar": (lambda path: _rewritten(path, lambda m, t: m.update(state='{"step": 3}')), "lacks epoch_loss"),
    "deep": (lambda path: _rewritten(path, lambda m, t: m.update(state="[" * 100_000)), "RecursionError"),
    "another run": (lambda path: _rewritten(path, lambda m, t: m.update(run="feed")), "holds run 'feed'"),
    "another attempt": (lambda path: _rewritten(path, lambda m, t: m.update(attempt="9")), "holds attempt '9'"),
    "another step": (lambda path: path.rename(path.with_name(path.name.replace("3", "4", 1))), "holds step 3"),
    "a newer schema": (lambda path: _rewritten(path, lambda m, t: m.update(schema="2")), "holds schema '2'"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_checkpoint_that_cannot_be_used_leaves_the_one_before_and_then_the_start(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, why = UNUSABLE[name]
    state, folder = _state(), tmp_path / "0001"
    folder.mkdir()
    with CheckpointWriter(folder, run="cafe") as writer:
        for _ in range(3):
            _step(state)
            writer.save(state)
    before, newest = sorted(folder.iterdir())
    spoil(newest)
    later = CheckpointWriter(tmp_path / "0002", [folder], run="cafe")
    assert later.newest(_state()) == before
    assert why in caplog.text and f"goes on from {before}" in caplog.text
    before.unlink()
    caplog.clear()
    assert later.newest(_state()) is None
    assert "goes on from its start" in caplog.text


def test_a_checkpoint_that_cannot_be_read_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state, folder = _state(), tmp_path / "0001"
    folder.mkdir()
    with CheckpointWriter(folder) as writer:
        for _ in range(2):
            _step(state)
            writer.save(state)
    before, newest = sorted(folder.iterdir())

    def read(path: Path) -> str:
        if path == newest:
            raise OSError(5, "Input/output error")
        return sha256_bytes(path.read_bytes())

    monkeypatch.setattr(checkpoint, "sha256_file", read)
    assert CheckpointWriter(tmp_path / "0002", [folder]).newest(_state()) == before
    assert "Input/output error" in caplog.text


def test_a_checkpoint_of_before_there_were_stamps_is_continued(tmp_path: Path) -> None:
    state, folder = _state(), tmp_path / "0001"
    folder.mkdir()
    _step(state)
    with CheckpointWriter(folder, run="cafe") as writer:
        writer.save(state)

    def unstamp(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key in ("schema", "run", "attempt", "step"):
            del metadata[key]

    _rewritten(next(folder.iterdir()), unstamp)
    assert CheckpointWriter(tmp_path / "0002", [folder], run="cafe").newest(_state()) is not None


def _stops_after(steps: int) -> Callable[[], bool]:
    asked = iter([False] * (steps - 1) + [True])
    return lambda: next(asked)


def test_another_runs_checkpoint_is_refused_and_leftovers_of_kills_are_cleared(
    checkout: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _execute(checkout, tmp_path / "whole")
    with pytest.raises(Interrupted):
        _execute(checkout, tmp_path / "own", stop_requested=_stops_after(2))
    with pytest.raises(Interrupted):
        spec, settings, _ = compose_run(checkout, [*WORDS, "seed=1"])
        store = Store(tmp_path / "other")
        execute(spec, settings, checkout=checkout, store=store, stop_requested=_stops_after(3))
    (attempt,) = (tmp_path / "own" / "runs" / "finetune").glob("*/attempts/*")
    foreign = sorted((tmp_path / "other").rglob("step-*.safetensors"))[-1]
    (attempt / foreign.name).write_bytes(foreign.read_bytes())
    left = [attempt / ".tmp-1", attempt.parent / ".tmp-2", attempt.parent.parent / ".tmp-3"]
    for path in left:
        path.mkdir() if path.name == ".tmp-2" else path.write_text("cut")
        os.utime(path, (0, 0))
    started = attempt.parent / ".tmp-now"
    started.mkdir()
    record = _execute(checkout, tmp_path / "own")
    assert f"{attempt / foreign.name}: foreign (holds run" in caplog.text
    assert record.run["resumed_at_step"] == 2
    assert canonical_json(record.result) == canonical_json(whole.result)
    assert not any(path.exists() for path in left) and started.exists()

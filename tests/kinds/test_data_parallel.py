"""``nora run exec.data_parallel=true`` started by torchrun: several processes (gloo, CPU) make one run's one record.

``accelerate launch`` starts torchrun for several GPUs, and on a CPU one process alone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nora.__main__ import leave
from nora.cli import main
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import take_snapshot
from nora.training.replicas import Replicas

Run = Callable[..., tuple[Record, bool]]
# Without dropout: each process draws masks of its own for its share.
WORDS = ["protocol=llm_adapters", "model=llama_smoke", "method=nora_plus", "method.dropout=0.0"]


def test_two_processes_make_the_record_of_one(run: Run, checkout: Path, tmp_path: Path) -> None:
    alone, _ = run(*WORDS, task="commonsense", store=tmp_path / "alone")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, "run"),
        *("scale=smoke", "task=commonsense", *WORDS, "exec.device=cpu", "exec.progress=false"),
        *("exec.data_parallel=true", f"exec.results={tmp_path / 'shared'}"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "shared")
    shared = store.read("finetune", alone.id)
    assert shared is not None and [r.id for r in take_snapshot(store).values()] == [alone.id]
    for ours, theirs in zip(shared.metrics["epochs"], alone.metrics["epochs"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    assert shared.metrics["test"]["gold_nll"] == pytest.approx(alone.metrics["test"]["gold_nll"], rel=1e-6)
    first, second = done.stdout.splitlines()  # of the first process; the other one says nothing
    assert "already done" not in first and "already done, nothing to do" in second
    assert len(store.attempts("finetune", alone.id)) == 1


UNEVEN = ["task.num_train=13", "protocol.batch_size=5", "protocol.eval_every=3", "exec.checkpoint_every=1"]
"""Batches of 5, 5 and 3: the last leaves the fourth process without an example."""


def _processes(results: Path, checkout: Path, count: int, **more: str) -> list[subprocess.CompletedProcess[str]]:
    """The run's processes, each with its own output, as a cluster starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["run", "scale=smoke", "task=commonsense", *WORDS, *UNEVEN, "exec.device=cpu", "exec.progress=false"]
    children = []
    for rank in range(count):
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), **more,
        }  # fmt: skip
        command = [sys.executable, __file__, *words, "exec.data_parallel=true", f"exec.results={results}"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        children.append(subprocess.Popen(command, env=environment, cwd=checkout, **pipes))
    outputs = [child.communicate(timeout=240) for child in children]
    return [subprocess.CompletedProcess([], c.returncode, *o) for c, o in zip(children, outputs, strict=True)]


@pytest.mark.slow
def test_four_processes_one_of_them_killed_make_the_record_of_one(run: Run, checkout: Path, tmp_path: Path) -> None:
    alone, _ = run(*WORDS, *UNEVEN, task="commonsense", store=tmp_path / "alone")
    whole = _processes(tmp_path / "whole", checkout, 4)
    assert [p.returncode for p in whole] == [0] * 4, whole[0].stderr
    broken = _processes(tmp_path / "broken", checkout, 4, KILLED_RANK="2", KILLED_STEP="3")
    assert [p.returncode for p in broken] == [1, 1, -9, 1]
    assert [len(p.stderr.splitlines()) for p in broken] == [1, 0, 0, 0], [p.stderr for p in broken]
    assert "one of the 4 processes of the run has ended" in broken[0].stderr
    assert Store(tmp_path / "broken").read("finetune", alone.id) is None

    again = _processes(tmp_path / "broken", checkout, 4)
    assert [p.returncode for p in again] == [0] * 4, again[0].stderr
    four, resumed = (Store(tmp_path / name).read("finetune", alone.id) for name in ("whole", "broken"))
    assert four is not None and resumed is not None
    assert resumed.run["resumed_at_step"] == 3 and resumed.result == four.result, "to the last bit"
    for ours, theirs in zip(four.metrics["epochs"], alone.metrics["epochs"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def _killed_at(step: int) -> None:
    """This process ends without a word when it is to take its share of the batch after so many steps."""
    shared, taken = Replicas.share, iter(range(step))

    def share(self: Replicas, indices: Sequence[int]) -> Sequence[int]:
        if next(taken, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return shared(self, indices)

    Replicas.share = share  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get("KILLED_RANK") == os.environ["RANK"]:
        _killed_at(int(os.environ["KILLED_STEP"]))
    again = "TORCHELASTIC_RUN_ID" in os.environ  # started by torchrun: the second time there is nothing to do, for both
    leave(main(sys.argv[1:]) or (main(sys.argv[1:]) if again else 0))

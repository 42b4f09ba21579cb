"""``nora run exec.data_parallel=true`` started by torchrun: two processes (gloo, CPU) make one run's one record.

``accelerate launch`` starts torchrun for several GPUs, and on a CPU one process alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nora.__main__ import leave
from nora.cli import main
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import take_snapshot

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


if __name__ == "__main__":  # twice, in each process: the second time there is nothing to do, for both
    leave(main(sys.argv[1:]) or main(sys.argv[1:]))

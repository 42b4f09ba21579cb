"""exec=local for real: two processes, smoke runs, one of them killed from outside."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nora import cli
from nora.kinds import compose_run
from nora.launch.local import Finished, run_cells
from nora.store.runs import Store
from nora.store.states import run_state, take_snapshot
from nora.tables.methods import load_table
from nora.workspace import Workspace


@pytest.mark.slow
def test_a_killed_process_fails_its_run_and_leaves_the_others_alone(checkout: Path, tmp_path: Path) -> None:
    """One cell trains far too long and its process gets SIGKILL each time it appears; the other two are done."""
    table = load_table(checkout, "table2", ["scale=smoke", "task=cb,sst2", "seed=0", "method=lora"])
    short = [c for c in table.cells({})]
    endless = load_table(
        checkout, "table2", ["scale=smoke", "task=rte", "seed=0", "method=lora", "protocol.epochs=9999"]
    )
    (victim,) = endless.cells({})
    store = Store(tmp_path)
    workspace = Workspace(
        checkout, store, compose_run(checkout, ["exec.progress=false", "exec.device=cpu", "exec.threads=1"])[1]
    ).with_store(store)
    killed: set[int] = set()
    over = threading.Event()

    def kill() -> None:
        while not over.is_set():
            for attempt in store.attempts("finetune", str(victim.id)):
                if attempt.journal.is_file() and (attempt.path / "owner.json").is_file():
                    pid = json.loads((attempt.path / "owner.json").read_text())["pid"]
                    if pid not in killed and pid != os.getpid():
                        killed.add(pid)
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    seen: list[Finished] = []
    try:
        finished = run_cells(
            [replace(victim), *short],
            workspace,
            processes=2,
            on_finished=seen.append,
        )
    finally:
        over.set()
        thread.join()
    assert finished == seen
    assert {f.cell.id: f.state for f in finished} == {victim.id: "failed", **{c.id: "done" for c in short}}
    assert "killed" in next(f.message for f in finished if f.cell.id == victim.id)
    assert len(killed) == 2, "tried twice"
    assert run_state(store, "finetune", str(victim.id)).state == "failed"
    assert [run_state(store, "finetune", str(c.id)).state for c in short] == ["done", "done"]


@pytest.mark.slow
def test_launch_then_collate_a_table_of_real_runs(checkout: Path, tmp_path: Path) -> None:
    words = ["table2", "scale=smoke", "task=cb", "seed=0", f"exec.results={tmp_path}", "exec.processes=1"]
    assert cli.main(["launch", *words]) == 0
    store = Store(tmp_path)
    records = list(take_snapshot(store).values())
    assert {r.spec["method"]["name"] for r in records} == {
        "lora", "lora_p", "pissa", "olora", "nora", "nora_plus", "prefix"
    }  # fmt: skip
    assert all(r.result["proof"]["passed"] for r in records)
    attempts = [len(store.attempts("finetune", r.id)) for r in records]
    assert cli.main(["launch", *words]) == 0, "nothing is left to do"
    assert [len(store.attempts("finetune", r.id)) for r in records] == attempts
    assert cli.main(["collate", *words]) == 0
    text = (tmp_path / "tables" / "table2.smoke.md").read_text()
    assert "SMOKE TEST" in text and "missing" not in text and "LoRA-P (not in the paper)" in text
    assert cli.main(["verify", *words]) == 0

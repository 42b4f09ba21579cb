"""A sweep on the one-machine SLURM of slurm/testbed under random events, against the same sweep left alone.

Events: requeue from outside, USR2, SIGKILL of the process, scancel, preemption by an urgent job, a node set down.
After each, `nora launch` is the only thing anybody does. Also: the seconds to submit 200 runs.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nora import cli
from nora.config.spec import run_id
from nora.errors import RunFailed
from nora.files import canonical_json
from nora.kinds import compose_run
from nora.launch import slurm
from nora.launch.cluster import submit_cells
from nora.launch.profile import load_profile
from nora.store.runs import Store
from nora.store.states import take_snapshot
from nora.tables.cell import Cell
from nora.verbs.machine import load_program
from nora.workspace import Workspace, find_checkout

slurm_testbed = load_program(Path(__file__).resolve().parents[1] / "tools" / "slurm_testbed.py")

_PATIENCE_SECONDS = 480


@contextmanager
def _testbed() -> Iterator[Path]:
    """A cluster of two nodes that this process is a client of; a folder with room for results."""
    before = dict(os.environ)
    with slurm_testbed.cluster() as client:
        os.environ |= client
        try:
            yield Path(client["TESTBED"]).parent
        finally:
            os.environ.clear()
            os.environ.update(before)


def _nora(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main(list(words))
    assert code == 0, out.getvalue()
    return out.getvalue()


def _results(store: Store) -> dict[str, str]:
    return {record.id: canonical_json(record.result) for record in take_snapshot(store).values()}


def _event(draw: random.Random, store: Store) -> str | None:
    """Something happens to a running task; what it was, None where nothing runs."""
    running = [task for task in slurm.queue() if task.state == "RUNNING" and task.name.startswith("nora-")]
    if not running:
        return None
    task = draw.choice(running)
    what = draw.choice(["requeue", "USR2", "SIGKILL", "scancel", "preempt", "node down"])
    with contextlib.suppress(RunFailed):
        if what == "requeue":
            slurm.requeue(task.id)
        elif what == "USR2":
            slurm.call("scancel", "--signal=USR2", task.id)
        elif what == "scancel":
            slurm.cancel([task.id])
        elif what == "preempt":
            slurm.call("sbatch", "-p", "urgent", "-N1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
        elif what == "node down":
            node = slurm.call("squeue", "-h", "-j", task.id, "-o", "%N").strip()
            slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=chaos")
            time.sleep(1)
            slurm.call("scontrol", "update", f"nodename={node}", "state=resume")
        else:
            owners = [a.owner() for path in store.root.glob("runs/*/*") for a in store.attempts(*_names(path))
                      if a.is_alive()]  # fmt: skip
            if owners:
                os.kill(draw.choice(owners)["pid"], signal.SIGKILL)
    return what


def _names(path: Path) -> tuple[str, str]:
    return path.parent.name, path.name


def _sweep(top: Path, words: list[str], events: int) -> dict[str, Any]:
    quiet = Store(top / "quiet")
    here = ["exec.device=cpu", "exec.processes=2"]
    with contextlib.redirect_stdout(io.StringIO()):  # 1 where cells of the second stage wait
        cli.main(["launch", *words, f"exec.results={quiet.root}", *here])
    expected = _results(quiet)
    draw, happened = random.Random(0), Counter[str]()
    store = Store(top / "chaos")
    cluster = [*words, "exec=slurm", "exec.profile=testbed", "exec.code=live", "exec.partition=scav",
               f"exec.results={store.root}", "exec.checkpoint_every=20", "exec.parallel=2"]  # fmt: skip
    started = time.monotonic()
    launches = 0
    while len(_results(store)) < len(expected) and time.monotonic() - started < _PATIENCE_SECONDS:
        verb = "retry" if "left alone" in _nora("launch", *cluster) else "launch"
        if verb == "retry":  # chaos may kill one run more often than a broken run is tried
            _nora("retry", *cluster)
        launches += 1
        time.sleep(draw.uniform(3, 6))
        if sum(happened.values()) < events:
            what = _event(draw, store)
            if what is not None:
                happened[what] += 1
    found = _results(store)
    attempts = sum(len(store.attempts("finetune", identity)) for identity in expected)
    return {
        "runs": len(expected),
        "identical": sum(found.get(identity) == result for identity, result in expected.items()),
        "lost": len(set(expected) - set(found)),
        "events": sum(happened.values()),
        "by": dict(sorted(happened.items())),
        "attempts": attempts,
        "launches": launches,
        "seconds": round(time.monotonic() - started, 1),
    }


def _submit_seconds(top: Path, checkout: Path, runs: int) -> dict[str, Any]:
    """Freezing and submitting that many runs to a partition that takes jobs and starts none."""
    slurm.call("scontrol", "update", "partition=gpu", "state=down")
    words = ["scale=smoke", "task=cb", "method=lora", "exec=slurm", "exec.profile=testbed", "exec.code=live"]
    spec, settings, _ = compose_run(checkout, words)
    specs = [replace(spec, seed=seed) for seed in range(runs)]
    cells = [Cell("table2", "smoke", "lora", "cb", s.seed, 1, {}, (), s, run_id(s)) for s in specs]
    store = Store(top / "many")
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        submit_cells("table2", cells, load_profile(checkout, settings), Workspace(checkout, store, settings))
    seconds = time.monotonic() - started
    sizes = [path.stat().st_size for path in store.root.glob("submissions/*/log/*_submitted.pkl")]
    slurm.call("scancel", "--state=PENDING", "--me")
    slurm.call("scontrol", "update", "partition=gpu", "state=up")
    return {"runs": runs, "seconds": round(seconds, 2), "payload_bytes": max(sizes)}


def run(*, quick: bool) -> dict[str, Any]:
    """Counts of the sweep and the seconds of a large submission; skipped, with the reason, without root or SLURM."""
    os.environ["PATH"] += ":/usr/sbin"
    if os.getuid() != 0 or not slurm.installed() or shutil.which("slurmctld") is None:
        return {"skipped": "needs root and SLURM (slurm/testbed/install.sh)"}
    checkout = find_checkout(Path(__file__).parent)
    os.environ["PYTHONPATH"] = str(checkout / "src")
    tasks = "cb,rte" if quick else "cb,rte,sst2,wsc,boolq,multirc"
    words = ["table2", "scale=smoke", f"task={tasks}", "seed=0,1", "method=lora", "protocol.epochs=60",
             "method.dropout=0.1"]  # fmt: skip
    with _testbed() as top:
        submission = _submit_seconds(top, checkout, 20 if quick else 200)
        print(submission, file=sys.stderr, flush=True)
        return {"submission": submission, "sweep": _sweep(top, words, 5 if quick else 20)}


def table(result: dict[str, Any]) -> str:
    """The counts for a terminal."""
    if "skipped" in result:
        return f"SKIPPED: {result['skipped']}"
    sweep, many = result["sweep"], result["submission"]
    return "\n".join(
        [
            f"{many['runs']} runs submitted in {many['seconds']} s, payload {many['payload_bytes']} bytes",
            f"sweep of {sweep['runs']} runs under {sweep['events']} events {sweep['by']}:",
            f"{sweep['identical']} identical, {sweep['lost']} lost, {sweep['attempts']} attempts, "
            f"{sweep['launches']} launches, {sweep['seconds']} s",
        ]
    )

"""A sweep on the one-machine SLURM of slurm/testbed under random events, against the same sweep left alone.

Events: requeue from outside, USR2, SIGKILL of the process, scancel, preemption by an urgent job, a node set down,
slurmctld restarted. `nora launch` is the only thing anybody does. Also: the seconds to submit 200 runs.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
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
from nora.store.attempt import Attempt
from nora.store.runs import Store
from nora.store.states import take_snapshot
from nora.store.verify import verify_record
from nora.tables.cell import Cell
from nora.verbs.machine import load_program
from nora.workspace import Workspace, find_checkout

slurm_testbed = load_program(Path(__file__).resolve().parents[1] / "tools" / "slurm_testbed.py")


@contextmanager
def testbed(*, own_hostnames: bool = False) -> Iterator[Path]:
    """A cluster of two nodes that this process is a client of; its folder, beside it there is room for results."""
    before = dict(os.environ)
    os.environ["PATH"] += ":/usr/sbin"
    os.environ["PYTHONPATH"] = str(find_checkout(Path(__file__).parent) / "src")
    with slurm_testbed.cluster(own_hostnames=own_hostnames) as client:
        os.environ |= client
        try:
            yield Path(client["TESTBED"])
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def small_disk(mib: int) -> Iterator[Path]:
    """A folder on a file system of its own. (Mounted before a cluster whose nodes have mounts of their own.)"""
    folder = Path(tempfile.mkdtemp(prefix="nora-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def _nora(*words: str) -> tuple[int, str]:
    """A command's exit code and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = cli.main(list(words))
    return code, out.getvalue()


def _outcomes(store: Store) -> dict[str, tuple[str, bytes]]:
    """By id, the result and the predictions of every record that is whole."""
    found = {}
    for record in take_snapshot(store).values():
        name = record.result["files"].get("predictions", {}).get("name")
        folder = store.run_dir(record.kind, record.id)
        if not verify_record(store, record):
            found[record.id] = canonical_json(record.result), (folder / name).read_bytes() if name else b""
    return found


def _attempts(store: Store) -> list[Attempt]:
    return [a for path in store.root.glob("runs/*/*") for a in store.attempts(path.parent.name, path.name)]


def _fill(folder: Path, seconds: float) -> None:
    """No byte is left on a disk, for a while."""
    filler = folder / ".filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    time.sleep(seconds)
    filler.unlink(missing_ok=True)


def _tasks() -> list[slurm.Task]:
    """Ours that run or will; none where the controller does not answer."""
    try:
        return [task for task in slurm.queue() if task.alive and task.name.startswith("nora-")]
    except RunFailed:
        return []


def _step_clocks(store: Store, seconds: float) -> None:
    """What a step of a node's clock is to those who read the store: its heartbeats are from another time."""
    for attempt in _attempts(store):
        with contextlib.suppress(FileNotFoundError):
            now = (attempt.path / "heartbeat").stat().st_mtime + seconds
            os.utime(attempt.path / "heartbeat", (now, now))


def _bring_back(folder: Path) -> bool:
    """What the people of a site do with a node that is down or that SLURM has drained, and with a controller that has
    crashed; whether it had."""
    crashed = not slurm_testbed.controller_lives(folder)
    if crashed:
        slurm_testbed.restart_controller(folder)
    with contextlib.suppress(RunFailed):  # it came back by itself, or the controller does not answer for a moment
        away = slurm.call("sinfo", "-h", "-N", "-p", "gpu", "-t", "down,drain", "-o", "%N").split()
        for node in set(away):
            slurm.call("scontrol", "update", f"nodename={node}", "state=resume")
    return crashed


def _strike(what: str, task: slurm.Task, draw: random.Random, folder: Path, store: Store) -> None:
    """One event; ``task`` is one that runs."""
    if what == "requeue":
        slurm.requeue(task.id)
    elif what == "USR2":
        slurm.call("scancel", "--signal=USR2", task.id)
    elif what == "scancel":
        slurm.cancel([task.id])
    elif what == "preempt":
        slurm.call("sbatch", "-p", "urgent", "-N1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    elif what == "node down":
        # Where a run is now: the task that was chosen may be off its node since, and then any node will do.
        nodes = slurm.call("squeue", "-h", "-p", "scav", "-t", "RUNNING", "-o", "%N").split()
        node = (nodes or slurm.call("sinfo", "-h", "-N", "-o", "%N").split())[0]
        slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=chaos")
        time.sleep(1)
        _bring_back(folder)
    elif what == "slurmctld restart":
        slurm_testbed.restart_controller(folder)
    elif what == "disk full":
        _fill(store.root.parent, draw.uniform(1, 4))
    elif what == "clock step":
        _step_clocks(store, draw.choice([-3600, -180, 180, 3600]))
    else:
        alive = [attempt for attempt in _attempts(store) if attempt.is_alive()]
        if alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(alive).owner()["pid"], signal.SIGKILL)


KINDS = ("requeue", "USR2", "scancel", "preempt", "node down", "slurmctld restart", "SIGKILL")
ON_A_DISK_OF_ITS_OWN = (*KINDS, "disk full", "clock step")


def disturbed(
    folder: Path, disk: Path, words: list[str], events: int, *, kinds: tuple[str, ...] = KINDS, patience: float = 480
) -> dict[str, Any]:
    """A sweep under that many events, spread over it, against the same sweep left alone.

    ``nora launch`` is the only thing anybody does, now and then and where nothing is queued, and ``nora retry`` where a
    launch says that a run has failed too often.
    """
    quiet, store = Store(disk / "quiet"), Store(disk / "chaos")
    words = [*words, "exec.bank=1"]  # packed alike: what trains beside a run moves its last digits
    _nora("launch", *words, f"exec.results={quiet.root}", "exec.device=cpu", "exec.processes=2")
    expected = _outcomes(quiet)
    draw = random.Random(0)
    waiting = [kinds[number % len(kinds)] for number in range(events)]
    draw.shuffle(waiting)
    happened, launches, retries, refused, released, crashed = Counter[str](), 0, 0, 0, 0, 0
    cluster = [*words, "exec=slurm", "exec.profile=testbed", "exec.code=live", "exec.partition=scav",
               f"exec.results={store.root}", "exec.checkpoint_every=20"]  # fmt: skip
    started = time.monotonic()
    while (done := len(take_snapshot(store))) < len(expected) and time.monotonic() - started < patience:
        tasks = _tasks()
        if not tasks or draw.random() < 0.1:
            code, said = _nora("launch", *cluster)
            launches, refused = launches + 1, refused + (code != 0)
            if "left alone" in said:
                _nora("retry", *cluster)
                retries += 1
        time.sleep(draw.uniform(0.5, 2))
        crashed += _bring_back(folder)
        for task in tasks:
            if "held" in task.reason.lower():  # SLURM's own: what it could not start on a node that came back
                with contextlib.suppress(RunFailed):  # gone meanwhile
                    slurm.call("scontrol", "release", task.id)
                    released += 1
        running = [task for task in _tasks() if task.state == "RUNNING"]
        if waiting and running and done >= sum(happened.values()) * (len(expected) - 2) // events:
            what = waiting.pop(0)
            try:
                _strike(what, draw.choice(running), draw, folder, store)
                happened[what] += 1
            except RunFailed:  # the task ended meanwhile
                waiting.append(what)
            print(f"{done} done, {sum(happened.values())} events: {what}", file=sys.stderr, flush=True)
    found, attempts = _outcomes(store), _attempts(store)
    published = Counter(a.path.parent.parent.name for a in attempts if (a.path / "finished").exists())
    return {
        "runs": len(expected),
        "identical": sum(found.get(identity) == outcome for identity, outcome in expected.items()),
        "lost": len(set(expected) - set(found)),
        "twice": sum(count > 1 for count in published.values()),
        "events": sum(happened.values()),
        "by": dict(sorted(happened.items())),
        "attempts": len(attempts),
        "launches": launches,
        "retries": retries,
        "launches that said no": refused,
        "jobs that SLURM held, released": released,
        "slurmctld crashed by itself, started": crashed,
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
    tasks = "cb,rte" if quick else "cb,rte,sst2,wsc,boolq,multirc"
    words = ["table2", "scale=smoke", f"task={tasks}", "seed=0,1", "method=lora", "protocol.epochs=60",
             "method.dropout=0.1"]  # fmt: skip
    with testbed() as folder:
        top = folder.parent
        submission = _submit_seconds(top, checkout, 20 if quick else 200)
        print(submission, file=sys.stderr, flush=True)
        return {"submission": submission, "sweep": disturbed(folder, top, words, 5 if quick else 20)}


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

"""What the tests do to the cluster, and what they ask it."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nora import cli
from nora.files import canonical_json
from nora.store.runs import Store


@dataclass(frozen=True)
class Testbed:
    """A running cluster and one test's results folder."""

    __test__ = False

    folder: Path
    results: Path
    python: str

    @property
    def store(self) -> Store:
        return Store(self.results)

    def words(self, *more: str, target: str = "table2") -> list[str]:
        """A target at smoke scale on this cluster."""
        own = [target] + (["scale=smoke"] if target == "table2" else [])
        own += ["exec=slurm", "exec.profile=testbed", "exec.code=live", f"exec.results={self.results}"]
        own = [word for word in own if word.partition("=")[0] not in {m.partition("=")[0] for m in more}]
        return [*own, *([] if any("exec.bank" in word for word in more) else ["exec.bank=1"]), *more]

    def nora(self, verb: str, *more: str, target: str = "table2") -> int:
        return cli.main([verb, *self.words(*more, target=target)])

    def ask(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    def jobs(self) -> list[tuple[str, str]]:
        """(job id, state) of every task the controller remembers."""
        lines = self.ask("squeue", "-h", "-r", "-t", "all", "-o", "%F_%K|%T").split()
        return [(line.split("|")[0], line.split("|")[1]) for line in lines]

    def states(self) -> Counter[str]:
        return Counter(state for _, state in self.jobs() if state not in ("CANCELLED",))

    def submitted(self) -> int:
        """Job records of any state."""
        return len(self.jobs())

    def wait(self, what: Callable[[], bool], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"timed out; jobs: {self.jobs()}; {self.logs()}"
            time.sleep(0.1)

    def idle(self) -> bool:
        return not self.ask("squeue", "-h", "-o", "%A").split()

    def journal_steps(self, kind: str, run_id: str) -> int:
        """The last step the newest attempt has journalled."""
        attempts = self.store.attempts(kind, run_id)
        if not attempts or not attempts[-1].journal.is_file():
            return 0
        lines = [line for line in attempts[-1].journal.read_text().splitlines() if "zero shot" not in line]
        steps = [json.loads(line).get("step", 0) for line in lines[-3:] if line.endswith("}")]
        return max(steps, default=0)

    def logs(self) -> str:
        """The end of every job log, for a test's message."""
        files = sorted(self.results.glob("submissions/*/log/*_log.*"))
        return "\n".join(f"{f.name}: {f.read_text()[-1500:]}" for f in files if f.stat().st_size)

    def clear(self) -> None:
        """No job, every node up, every partition up."""
        jobs = sorted(set(self.ask("squeue", "-h", "-o", "%A").split()))
        if jobs:
            subprocess.run(["scancel", "--full", "--signal=KILL", *jobs], check=False, capture_output=True)
            subprocess.run(["scancel", *jobs], check=False, capture_output=True)
            self.wait(self.idle, 40)
        for partition in ("gpu", "scav", "scavk", "urgent"):
            self.ask("scontrol", "update", f"partition={partition}", "state=up")


def hold(slurm: Testbed) -> None:
    """Jobs are accepted and wait."""
    slurm.ask("scontrol", "update", "partition=gpu", "state=down")


# Long enough to be disturbed (about ten seconds), dropout on, so that a wrong continuation shows.
STAGE_1 = ["task=cb", "seed=0", "method=lora", "protocol.epochs=200", "method.dropout=0.1"]


def long_run(slurm: Testbed) -> tuple[str, str]:
    """The only run of STAGE_1 as (kind, id)."""

    from nora.tables.methods import load_table

    root = Path(__file__).resolve().parents[2]
    table = load_table(root, "table2", ["scale=smoke", *STAGE_1])
    (cell,) = [c for c in table.cells({}) if c.stage == 1]
    return "finetune", str(cell.id)


def launch_and_wait_for_step(slurm: Testbed, step: int, *more: str) -> tuple[str, str]:
    kind, identity = long_run(slurm)
    assert slurm.nora("launch", *STAGE_1, "exec.checkpoint_every=20", *more) == 0
    slurm.wait(lambda: slurm.journal_steps(kind, identity) >= step)
    return kind, identity


def job_of(slurm: Testbed, kind: str, identity: str) -> str:
    return str(slurm.store.attempts(kind, identity)[-1].owner()["job"])


def ends_identically(slurm: Testbed, kind: str, identity: str, quiet: str, *, resumed: bool = True) -> None:
    slurm.wait(lambda: slurm.store.read(kind, identity) is not None)
    record = slurm.store.read(kind, identity)
    assert record is not None and canonical_json(record.result) == quiet
    if resumed:
        assert record.run["resumed_at_step"] is not None and record.run["resumed_at_step"] > 0
    slurm.wait(slurm.idle)

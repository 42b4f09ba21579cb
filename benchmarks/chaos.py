"""Faults against one run: kills at random steps and inside file operations, disk full, I/O errors, rot, strangers.

Each trial has an empty store of its own. It passes when, after the fault and plain restarts (no manual step), result,
adapter and predictions are byte-identical to those of an undisturbed run, and nothing damaged was read silently.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nora.config.spec import run_id
from nora.errors import AlreadyRunning, RunFailed
from nora.execution.bank import BankRun, execute_bank
from nora.execution.execute import execute
from nora.files import canonical_json
from nora.kinds import compose_run
from nora.store.record import DamagedRecord, Record
from nora.store.runs import Store, read_json_lines
from nora.store.states import take_snapshot
from nora.store.verify import verify_record
from nora.verbs.machine import load_program
from nora.workspace import find_checkout

_cluster = load_program(Path(__file__).with_name("cluster.py"))
_hostile, _readers, _sinks, _wandb = (
    load_program(Path(__file__).with_name(f"_{name}.py")) for name in ("hostile", "readers", "sinks", "wandb")
)
_WORDS = ["scale=smoke", "task=cb", "method=nora_plus", "method.dropout=0.1", "protocol.epochs=8", "exec.device=cpu",
          "exec.checkpoint_every=2", "exec.keep_adapter=true", "exec.progress=false"]  # fmt: skip
_SYSCALLS = ("openat", "write", "fsync", "rename", "link", "unlink", "mkdir")
_ERRORS = ("EIO", "ENOSPC", "EMFILE", "EINTR")
_METHODS = "lora,lora_p,nora,nora_plus,olora,pissa"
_STATUS = {RunFailed: 3, AlreadyRunning: 0}


_HERE = ["exec.device=cpu", "exec.progress=false", "exec.checkpoint_every=2"]
_KINDS = {
    "instruct": ["scale=smoke", "task=gsm8k", "protocol=metamath", "model=gemma_smoke", "method=nora_plus", *_HERE],
    "DreamBooth": ["kind=dreambooth", "scale=smoke", "method=nora_plus", *_HERE],
    "factorisation": ["kind=factorize", "problem.m=60", "protocol.iterations=40", *_HERE],
    "deployment": ["kind=deployment", "adapter.init=kaiming", *_HERE],
}
"""Beside the few-shot run above."""


def _forked(work: Callable[[], int]) -> int:
    """Forks a process that does it, silent on standard error, and exits with what it returns (4: it raised); its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 4
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = work()
    finally:
        os._exit(code)


class Subject:
    """The run under test and what it must come to."""

    def __init__(self, folder: Path, words: list[str] = _WORDS) -> None:
        self.checkout = find_checkout(Path(__file__).parent)
        self.spec, self.settings, _ = compose_run(self.checkout, words)
        self.id, self.kind = run_id(self.spec), self.spec.kind
        self.folder = folder
        self.quiet = folder / f"quiet-{self.id}"
        started = time.monotonic()
        assert self.wait(self.start(self.quiet)) == 0
        self.seconds = time.monotonic() - started
        self.expected = self.outcome(self.quiet)

    def outcome(self, results: Path) -> tuple[str, dict[str, bytes]] | None:
        """Result, adapter and predictions; None where they are not all there."""
        store = Store(results)
        try:
            record = store.read(self.kind, self.id)
        except DamagedRecord:
            return None
        if record is None or verify_record(store, record):
            return None
        folder = store.run_dir(self.kind, self.id)
        names = {label: file["name"] for label, file in record.result["files"].items()}
        files = {label: (folder / name).read_bytes() for label, name in names.items() if (folder / name).is_file()}
        return canonical_json(record.result), files

    def start(self, results: Path, *, stopped: bool = False, on_step: Callable[[int], None] | None = None) -> int:
        """Forks a process that makes the run; its id. ``stopped``: it waits for SIGCONT first."""

        def work() -> int:
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            show = (lambda update: on_step(update.step)) if on_step else (lambda update: None)
            try:
                execute(self.spec, self.settings, checkout=self.checkout, store=Store(results), show=show)
            except (RunFailed, AlreadyRunning) as error:
                return _STATUS[type(error)]
            return 0

        return _forked(work)

    def wait(self, child: int) -> int:
        """Exit code of a child, minus the signal where one ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def recovers(self, results: Path) -> bool:
        """A plain restart comes to the expected end."""
        return self.wait(self.start(results)) == 0 and self.outcome(results) == self.expected

    @contextmanager
    def store(self, name: str) -> Iterator[Path]:
        """An empty store for one trial."""
        path = self.folder / name
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path)


def _tally(passed: list[bool], **more: Any) -> dict[str, Any]:
    return {"trials": len(passed), "passed": sum(passed), **more}


def random_steps(subject: Subject, trials: int, draw: random.Random) -> dict[str, Any]:
    """SIGKILL to itself at a random step, once; lost at most two checkpoint intervals (a write in flight)."""
    passed = []
    for trial in range(trials):
        at = draw.randint(1, 15)

        def kill(step: int, at: int = at) -> None:
            if step == at:
                os.kill(os.getpid(), signal.SIGKILL)

        with subject.store(f"step-{trial}") as results:
            died = subject.wait(subject.start(results, on_step=kill)) == -signal.SIGKILL
            fine = died and subject.recovers(results)
            record = Store(results).read(subject.kind, subject.id)
            resumed = (record.run["resumed_at_step"] or 0) if record else 0
            passed.append(fine and at - resumed <= 4)
    return _tally(passed)


def kills_of_every_kind(subjects: dict[str, Subject], trials: int, draw: random.Random) -> dict[str, Any]:
    """SIGKILL to itself at a random one of all the moments at which a run says how far it is; ``trials`` of each."""
    by: dict[str, list[bool]] = {}
    for name, subject in subjects.items():
        (attempt,) = Store(subject.quiet).attempts(subject.kind, subject.id)
        moments = len(read_json_lines(attempt.journal))
        for trial in range(trials):
            with subject.store(f"{name}-{trial}") as results:
                die = _die_at_moment(draw.randint(1, moments))
                died = subject.wait(subject.start(results, on_step=die)) == -signal.SIGKILL
                by.setdefault(name, []).append(died and subject.recovers(results))
    every = [p for passed in by.values() for p in passed]
    return _tally(every, by={name: _tally(passed) for name, passed in by.items()})


def kills_of_a_bank(folder: Path, trials: int, draw: random.Random) -> dict[str, Any]:
    """SIGKILL from outside at a random moment of a bank of three; one plain restart, and every member has its record.

    What a member is trained beside after that may differ, and so may its last digits: its losses are those of the quiet
    bank to 1e-4, its files are whole.
    """
    checkout = find_checkout(Path(__file__).parent)
    words = [w for w in _WORDS if not w.startswith("method=")]
    composed = [compose_run(checkout, [*words, f"method={name}"]) for name in ("lora", "nora", "nora_plus")]
    specs, settings = [spec for spec, _, _ in composed], replace(composed[0][1], threads=1)

    def start(results: Path) -> int:
        def work() -> int:
            ended: list[Any] = []
            execute_bank(
                [BankRun(spec) for spec in specs], settings, checkout=checkout, store=Store(results),
                on_ended=lambda number, how: ended.append(how),
            )  # fmt: skip
            return 0 if all(isinstance(how, Record) for how in ended) and len(ended) == len(specs) else 3

        return _forked(work)

    def losses(results: Path) -> list[float]:
        store, found = Store(results), []
        for spec in specs:
            record = store.read(spec.kind, run_id(spec))
            if record is None or verify_record(store, record):
                return []
            found += [record.metrics["test"]["loss"], *(entry["loss"] for entry in record.metrics["epochs"])]
        return found

    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(start(folder / "bank"), 0)[1]) == 0
    seconds, expected, passed = time.monotonic() - began, losses(folder / "bank"), []
    while len(passed) < trials:
        results = folder / f"bank-{len(passed)}"
        child = start(results)
        time.sleep(seconds * draw.uniform(0.1, 0.95))
        os.kill(child, signal.SIGKILL)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        again = os.waitstatus_to_exitcode(os.waitpid(start(results), 0)[1]) == 0
        found = losses(results)
        shutil.rmtree(results)
        if died:  # else it had ended: nothing was tried
            near = [math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, expected, strict=False)]
            passed.append(again and len(found) == len(expected) and all(near))
    return _tally(passed)


def _die_at_moment(at: int) -> Callable[[int], None]:
    met = itertools.count(1)

    def die(step: int) -> None:
        if next(met) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


def _traced(subject: Subject, results: Path, *options: str) -> tuple[int, str]:
    """A start under strace: exit code and strace's output."""
    child = subject.start(results, stopped=True)
    os.waitpid(child, os.WUNTRACED)
    log = results.parent / "strace.log"
    with log.open("w") as file:
        tracer = subprocess.Popen(["strace", "-f", "-p", str(child), *options], stderr=file, stdout=subprocess.DEVNULL)
        while "attached" not in log.read_text():
            time.sleep(0.01)
        os.kill(child, signal.SIGCONT)
        code = subject.wait(child)
        tracer.wait()
    return code, log.read_text()


def _counts(subject: Subject) -> dict[str, int]:
    with subject.store("counted") as results:
        _, log = _traced(subject, results, "-e", f"trace={','.join(_SYSCALLS)}")
    return {name: len(re.findall(rf"(?m)^(?:\[pid +\d+\] )?{name}\(", log)) for name in _SYSCALLS}


def _spread(counts: dict[str, int], trials: int, draw: random.Random) -> list[tuple[str, int]]:
    """Operations to fail: each syscall in turn, at numbers drawn from those it was called."""
    names = [name for name in _SYSCALLS if counts[name]]
    return [(name, draw.randint(1, counts[name])) for name in (names * trials)[:trials]]


def kills_in_file_operations(subject: Subject, trials: int, draw: random.Random) -> dict[str, Any]:
    """SIGKILL inside the k-th openat, write, fsync, rename, link, unlink, mkdir."""
    counts = _counts(subject)
    passed, died, by = [], 0, {}
    for trial, (name, k) in enumerate(_spread(counts, trials, draw)):
        with subject.store(f"kill-{trial}") as results:
            code, _ = _traced(subject, results, "-e", f"inject={name}:signal=SIGKILL:when={k}")
            died += code == -signal.SIGKILL
            passed.append(subject.recovers(results))
            by.setdefault(name, []).append(passed[-1])
    return _tally(passed, died=died, calls=counts, by={name: _tally(p) for name, p in by.items()})


def errors_in_file_operations(subject: Subject, trials: int, draw: random.Random) -> dict[str, Any]:
    """EIO, ENOSPC, EMFILE, EINTR in turn from the k-th write, fsync, rename, link, mkdir: a typed failure or a right
    end, then recovery."""
    counts = {**_counts(subject), "openat": 0, "unlink": 0}
    typed, by = 0, {}
    for trial, (name, k) in enumerate(_spread(counts, trials, draw)):
        error = _ERRORS[trial % len(_ERRORS)]
        with subject.store(f"error-{trial}") as results:
            code, _ = _traced(subject, results, "-e", f"inject={name}:error={error}:when={k}")
            typed += code == _STATUS[RunFailed]
            by.setdefault(error, []).append(code in (0, _STATUS[RunFailed]) and subject.recovers(results))
    every = [p for passed in by.values() for p in passed]
    return _tally(every, typed_failures=typed, by={name: _tally(passed) for name, passed in by.items()})


def disk_full(subject: Subject, sizes_kib: list[int]) -> dict[str, Any]:
    """A small tmpfs: a typed failure, nothing damaged, the right end once there is room."""
    passed, failures = [], 0
    for size in sizes_kib:
        with subject.store(f"full-{size}") as results:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(results)], check=True)
            try:
                code = subject.wait(subject.start(results))
                failures += code == _STATUS[RunFailed]
                whole = not take_snapshot(Store(results)).damaged
                subprocess.run(["mount", "-o", "remount,size=32m", str(results)], check=True)
                passed.append(code in (0, _STATUS[RunFailed]) and whole and subject.recovers(results))
            finally:
                subprocess.run(["umount", str(results)], check=True)
    return _tally(passed, typed_failures=failures, sizes_kib=sizes_kib)


_DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda data, draw: data[: draw.randrange(len(data))],
    "zero-filled": lambda data, draw: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "bit-flipped": lambda data, draw: _flip(data, draw.randrange(len(data)), draw.randrange(8)),
}


def _flip(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def rot(subject: Subject, trials: int, draw: random.Random) -> dict[str, Any]:
    """Checkpoint, adapter, predictions and record, damaged: seen, named, repaired by a restart."""
    by: dict[str, list[bool]] = {}
    for trial in range(trials):
        for what in ("checkpoint", "adapter", "predictions", "record"):
            name = list(_DAMAGE)[trial % len(_DAMAGE)]
            with subject.store(f"rot-{trial}-{what}") as results:
                store = Store(results)
                if what == "checkpoint":
                    subject.wait(subject.start(results, on_step=_die_at(11)))
                    path = sorted(results.rglob("step-*.safetensors"))[-1]
                else:
                    subject.wait(subject.start(results))
                    pattern = {"record": "record.json"}.get(what, f"{what}.*")
                    path = next(store.run_dir(subject.kind, subject.id).glob(pattern))
                path.write_bytes(_DAMAGE[name](path.read_bytes(), draw))
                seen = what == "checkpoint" or subject.outcome(results) is None
                by.setdefault(what, []).append(seen and subject.recovers(results))
    every = [p for passed in by.values() for p in passed]
    return _tally(every, by={what: _tally(passed) for what, passed in by.items()})


def corruptions(
    folder: Path,
    trials: int,
    draw: random.Random,
    *,
    restarts: int,
    names: tuple[str, ...] = ("few-shot", "factorisation", "DreamBooth"),
) -> dict[str, Any]:
    """Every file that killed, failed and finished runs of some kinds left."""
    words = {name: {"few-shot": _WORDS, **_KINDS}[name] for name in names}
    subjects = {name: (Subject(folder, own), Subject(folder, [*own, "seed=1"])) for name, own in words.items()}
    return _hostile.corruptions(subjects, _die_at(3), trials, draw, restarts=restarts)  # type: ignore[no-any-return]


def _die_at(at: int) -> Callable[[int], None]:
    def die(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


def starts_at_once(subject: Subject, rounds: int, processes: int) -> dict[str, Any]:
    """Many processes start one run together: every one ends well and one record is published."""
    passed, workers = [], []
    for number in range(rounds):
        with subject.store(f"at-once-{number}") as results:
            children = [subject.start(results, stopped=True) for _ in range(processes)]
            for child in children:
                os.waitpid(child, os.WUNTRACED)
            for child in children:
                os.kill(child, signal.SIGCONT)
            codes = [subject.wait(child) for child in children]
            attempts = Store(results).attempts(subject.kind, subject.id)
            workers.append(sum((a.path / "finished").exists() for a in attempts))
            passed.append(codes == [0] * processes and subject.outcome(results) == subject.expected)
    return _tally(passed, processes=processes, attempts_that_worked=sorted(set(workers)))


def slurm_sweep(tasks: str, methods: str, events: int) -> dict[str, Any]:
    """Both stages of a sweep on the real SLURM of slurm/testbed, under events spread over it: its records are those of
    the same sweep left alone. Preemption is the scheduler's own (a partition of higher priority), a full disk one of 64
    MiB; a clock step is what the store shows of one: every heartbeat minutes or an hour away."""
    with _cluster.small_disk(64) as disk, _cluster.testbed(own_hostnames=True) as bed:
        words = ["table2", "scale=smoke", f"task={tasks}", "seed=0,1", f"method={methods}", "protocol.epochs=20",
                 "method.dropout=0.1"]  # fmt: skip
        found = _cluster.disturbed(bed, disk, words, events, kinds=_cluster.ON_A_DISK_OF_ITS_OWN, patience=40 * events)
    return {"trials": found.pop("runs"), "passed": found.pop("identical"), **found}


def run(*, quick: bool) -> dict[str, Any]:
    """Counts per kind of fault; kinds that this machine cannot do are named with the reason."""
    draw = random.Random(0)
    folder = Path(tempfile.mkdtemp(prefix="nora-chaos-"))
    result: dict[str, Any] = {"skipped": {}}
    try:
        subject = Subject(folder)
        subject.settings = replace(subject.settings, threads=1)
        parts: dict[str, tuple[str | None, Callable[[], dict[str, Any]]]] = {
            "SIGKILL at a random step": (None, lambda: random_steps(subject, 4 if quick else 50, draw)),
            "SIGKILL inside a file operation": (
                None if shutil.which("strace") else "strace is not installed",
                lambda: kills_in_file_operations(subject, 7 if quick else 50, draw),
            ),
            "an error from a file operation": (
                None if shutil.which("strace") else "strace is not installed",
                lambda: errors_in_file_operations(subject, 5 if quick else 25, draw),
            ),
            "disk full": (
                None if os.getuid() == 0 else "needs root (mounts a small tmpfs)",
                lambda: disk_full(subject, [8, 64] if quick else [4, 8, 16, 32, 64, 96, 128, 192]),
            ),
            "damaged file": (None, lambda: rot(subject, 1 if quick else 9, draw)),
            "SIGKILL in every kind of run": (
                None,
                lambda: kills_of_every_kind(
                    {n: Subject(folder, w) for n, w in _KINDS.items()}, 1 if quick else 60, draw
                ),
            ),
            "SIGKILL in a bank": (None, lambda: kills_of_a_bank(folder, 2 if quick else 50, draw)),
            "a file spoilt, or a stranger in its place": (
                None,
                lambda: corruptions(Path(folder), 60 if quick else 2000, draw, restarts=6 if quick else 150),
            ),
            "a hostile text before a sink": (
                None,
                lambda: _hostile.payloads(
                    subject.checkout, folder / "payloads", _hostile.PAYLOADS[:: 9 if quick else 1]
                ),
            ),
            "hostile texts in a real browser, TeX and spreadsheet": (
                _sinks.why_not(),
                lambda: _sinks.sinks(
                    subject.checkout, folder / "sinks", _hostile.PAYLOADS[:: 9 if quick else 1], _hostile.with_text
                ),
            ),
            "32 readers beside 2 writers for 10 minutes": (
                None,
                lambda: _readers.beside_writers(subject.checkout, folder / "readers", 20 if quick else 600),
            ),
            "W&B refusing, silent, 429, 500, slow": (
                None if find_spec("wandb") else "wandb is not installed",
                lambda: _wandb.moods(subject.checkout, ("429", "slow") if quick else _wandb.MOODS),
            ),
            "a config generated at random": (
                None,
                lambda: _hostile.configs(subject.checkout, 200 if quick else 10_000, draw),
            ),
            "a SLURM sweep under 50 events": (
                _cluster.slurm_testbed.why_not(),
                lambda: slurm_sweep(*(("cb", "lora", 5) if quick else ("cb,rte,sst2", _METHODS, 50))),
            ),
            "started many times at once": (
                None,
                lambda: starts_at_once(subject, 1 if quick else 20, 8 if quick else 32),
            ),
        }
        for name, (obstacle, part) in parts.items():
            if obstacle:
                result["skipped"][name] = obstacle
                continue
            started = time.monotonic()
            result[name] = {**part(), "seconds": round(time.monotonic() - started, 1)}
            print(json.dumps({name: result[name]}), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def table(result: dict[str, Any]) -> str:
    """The counts for a terminal; ``not run``: what a committed result names beside what this program has run."""
    left = {**result["skipped"], **result.get("not run", {})}
    parts = {name: part for name, part in result.items() if name not in ("skipped", "not run")}
    width = max(map(len, ["fault", *parts, *left]))
    lines = [f"{'fault':{width}} {'passed':>12}"]
    lines += [f"{name:{width}} {part['passed']:6}/{part['trials']}" for name, part in parts.items()]
    return "\n".join(lines + [f"{name:{width}} NOT RUN: {reason}" for name, reason in left.items()])

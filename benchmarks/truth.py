"""Everyday ways in which a record could be wrong while it looks clean: each tried on real parts, a line per case.

The cases are tests (real git, real users, real SLURM, a file system without hard links); this runs those of each case
and counts. By its own hand it composes random override lists and makes a user's git commands beside a running sweep in
a clone of the checkout.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from nora.verbs.machine import load_program
from nora.workspace import find_checkout

_STORE, _ANSWERS = "tests/kinds/test_store.py", "tests/slurm/test_scheduler_answers.py"
CASES: list[tuple[str, str, list[str]]] = [
    ("1", "the code of a record is the code that ran", ["tests/kinds/test_code.py", "tests/launch/test_snapshot.py",
                                                        "tests/slurm/test_code_of_a_submission.py"]),
    ("2", "nothing that a run reads is missing from its id", [
        f"{_STORE}::test_every_committed_record_has_the_id_of_its_spec", "tests/kinds/test_pins.py"]),
    ("3", "a newer record is never written over; two stores are merged", [
        f"{_STORE}::test_a_newer_versions_record_is_never_written_over", "tests/kinds/test_merge.py"]),
    ("4", "a job is a number, a name, a cluster, a user", ["tests/slurm/test_whose_job.py"]),
    ("5", "two people, one store", ["tests/slurm/test_two_people.py"]),
    ("6", "who is alive, whatever the clocks and namespaces", [
        f"{_STORE}::test_the_heartbeat_is_read_by_the_clock_that_wrote_it",
        f"{_STORE}::test_a_pid_of_another_namespace_or_boot_is_not_asked_for",
        f"{_STORE}::test_on_another_host_the_heartbeat_decides"]),
    ("7", "the scheduler's other answers", [_ANSWERS]),
    ("8", "a file system without hard links", [f"{_STORE}::test_a_file_system_without_hard_links",
                                               "tests/kinds/test_exfat.py"]),
    ("9", "a multirun tells the truth", ["tests/launch/test_multirun_states.py", "tests/slurm/test_multirun.py"]),
    ("10", "Ctrl-C, TERM and HUP save the state", ["tests/launch/test_stops.py"]),
    ("11", "a config mistake makes no attempt", ["tests/kinds/test_config_mistakes.py"]),
    ("12", "what one runs stays apart", ["tests/contracts/test_commands.py::test_what_one_runs_stays_apart"]),
    ("plans", "random words given to plan", ["tests/kinds/test_random_overrides.py::test_plans_of_random_words"]),
    ("folders", "hostile folders, 13 commands each", ["tests/launch/test_hostile_folders.py"]),
]  # fmt: skip
_SWEEP = ["scale=smoke", "task=cb", "method=lora", "exec.device=cpu", "exec.progress=false", "protocol.epochs=1"]


def _tests(checkout: Path, selected: list[str]) -> dict[str, int]:
    """How many of the tests ran, passed and failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        marks = ["-m", "not gpu and not network", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", "-q", *marks, *selected]
        subprocess.run(command, cwd=checkout, capture_output=True, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    wrong = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"tried": len(cases) - skipped, "right": len(cases) - skipped - wrong, "wrong": wrong, "skipped": skipped}


def _override_lists(checkout: Path, lists: int) -> dict[str, int]:
    """What becomes of random override lists: a spec or a line of refusal; anything else is wrong."""
    overrides = load_program(checkout / "tests" / "kinds" / "test_random_overrides.py")
    counts = {"right": 0, "refused": 0, "wrong": 0}
    for seed in range(lists):
        try:
            counts[overrides.outcome(overrides.random_words(random.Random(seed)), checkout)] += 1
        except Exception as error:
            counts["wrong"] += 1
            print(f"list {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    right = counts["right"] + counts["refused"]
    return {"tried": lists, "right": right, "wrong": counts["wrong"], "skipped": 0, "refused": counts["refused"]}


def _git_beside_a_sweep(checkout: Path, commands: int) -> dict[str, int]:
    """A user's git commands in a clone while runs and plans of that clone start one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", "--local", str(checkout), str(clone)], check=True)
        who = ["-c", "user.name=u", "-c", "user.email=u@example.org"]
        beside = itertools.cycle([
            ["status", "--short"], ["add", "-A"], ["commit", "-q", "-m", "a commit"],
            ["diff", "--stat"], ["stash", "-u", "-q"], ["stash", "pop", "-q"], ["reset", "-q"], ["log", "-1", "--stat"],
        ])  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(clone / "src")}
        started, wrong, tried = 0, 0, 0
        sweep: subprocess.Popen[bytes] | None = None
        for arguments in itertools.islice(beside, commands):
            if sweep is None or sweep.poll() is not None:
                started += 1
                words = [*_SWEEP, f"seed={started},{started + 5000}", f"exec.results={folder}/store"]
                sweep = subprocess.Popen(
                    [sys.executable, "-m", "nora", "run", "-m", *words], cwd=clone, env=environment,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            if arguments[0] == "add" or arguments[:2] == ["stash", "-u"]:  # something to commit, something to stash
                with (clone / "README.md").open("a") as file:
                    file.write("x\n")
            done = subprocess.run(["git", *who, *arguments], cwd=clone, capture_output=True, check=False)
            tried, wrong = tried + 1, wrong + (done.returncode != 0)
            time.sleep(0.02)
        if sweep is not None:
            sweep.wait()
    return {"tried": tried, "right": tried - wrong, "wrong": wrong, "skipped": 0, "sweeps": started}


def run(*, quick: bool) -> dict[str, Any]:
    """Every case; a quick run takes two of them and forty git commands."""
    checkout = find_checkout(Path(__file__).parent)
    chosen = [case for case in CASES if case[0] in ("6", "8")] if quick else CASES
    rows = []
    for number, what, selected in chosen:
        rows.append({"case": number, "what": what, **_tests(checkout, selected)})
        print(_line(rows[-1]), file=sys.stderr, flush=True)
    for case, what, counts in (
        ("lists", "random override lists: a spec or one line", _override_lists(checkout, 40 if quick else 3000)),
        ("git", "a user's git commands beside a running sweep", _git_beside_a_sweep(checkout, 40 if quick else 1000)),
    ):
        rows.append({"case": case, "what": what, **counts})
        print(_line(rows[-1]), file=sys.stderr, flush=True)
    return {"cases": rows}


def _line(row: dict[str, Any]) -> str:
    skipped = f", {row['skipped']} skipped" if row["skipped"] else ""
    counts = f"tried {row['tried']:4}, right {row['right']:4}, wrong {row['wrong']}{skipped}"
    return f"{row['case']:>7}  {row['what']:66} {counts}"


def table(result: dict[str, Any]) -> str:
    """A line per case."""
    rows = result["cases"]
    wrong = sum(row["wrong"] for row in rows)
    aim = f"aim: nothing wrong: {'met' if wrong == 0 else 'NOT met'}, {wrong} of {sum(row['tried'] for row in rows)}"
    return "\n".join([*map(_line, rows), aim])

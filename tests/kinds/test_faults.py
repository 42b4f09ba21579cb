"""A few trials of ``nora bench chaos``: the whole of it is results/bench/chaos.json."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nora.verbs.machine import load_program

_FEW = """
import json, random, tempfile
from pathlib import Path
from nora.verbs.machine import load_program
chaos = load_program(Path("benchmarks/chaos.py"))
draw = random.Random(1)
subject = chaos.Subject(Path(tempfile.mkdtemp()))
print(json.dumps({parts}))
"""


def _few(checkout: Path, parts: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _FEW.replace("{parts}", parts)],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_kills_rot_and_many_starts(checkout: Path) -> None:
    parts = "[chaos.random_steps(subject, 2, draw), chaos.starts_at_once(subject, 1, 6), chaos.rot(subject, 1, draw)]"
    for part in _few(checkout, parts):
        assert part["passed"] == part["trials"] > 0, part


def test_a_stranger_in_a_files_place(checkout: Path) -> None:
    few = "[chaos.corruptions(subject.folder, 40, draw, restarts=3, names=('few-shot',))]"
    (part,) = _few(checkout, few)
    assert part["passed"] == part["trials"] == 40 and part["restarted"] >= 3 and part["stuck"] == 0, part


@pytest.mark.slow
def test_kills_in_every_kind_of_run(checkout: Path) -> None:
    every, bank = _few(
        checkout,
        "[chaos.kills_of_every_kind({n: chaos.Subject(subject.folder, w) for n, w in chaos._KINDS.items()}, 1, draw),"
        " chaos.kills_of_a_bank(subject.folder, 1, draw)]",
    )
    assert every["passed"] == every["trials"] == 4, every
    assert bank["passed"] == bank["trials"] == 1, bank


def test_a_config_generated_at_random(checkout: Path) -> None:
    (part,) = _few(checkout, "[chaos._hostile.configs(subject.checkout, 20, draw)]")
    assert part["passed"] == part["trials"] == 20, part


@pytest.mark.skipif(shutil.which("strace") is None, reason="NO FAULT INJECTION: strace is not installed")
@pytest.mark.slow
def test_kills_and_errors_inside_file_operations(checkout: Path) -> None:
    calls = "[chaos.kills_in_file_operations(subject, 7, draw), chaos.errors_in_file_operations(subject, 5, draw)]"
    for part in _few(checkout, calls):
        assert part["passed"] == part["trials"] > 0, part


@pytest.mark.skipif(os.getuid() != 0, reason="NO FULL DISK: mounting a small tmpfs needs root")
def test_a_full_disk_is_a_typed_failure(checkout: Path) -> None:
    (part,) = _few(checkout, "[chaos.disk_full(subject, [8])]")
    assert part["passed"] == part["trials"] == 1 and part["typed_failures"] == 1


def test_a_hostile_text_is_a_text_before_every_sink(checkout: Path) -> None:
    """HTML, LaTeX, CSV and the terminal."""
    (part,) = _few(checkout, "[chaos._hostile.payloads(subject.checkout, subject.folder / 'payloads')]")
    assert part["wrong"] == [] and part["passed"] == part["trials"] > 200 and part["payloads"] >= 60, part


_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
_SINKS, _HOSTILE = (load_program(_BENCHMARKS / f"_{name}.py") for name in ("sinks", "hostile"))


@pytest.mark.skipif(_SINKS.why_not() is not None, reason=f"NO REAL SINKS: {_SINKS.why_not()}")
def test_a_hostile_text_before_the_programs_that_people_open_it_with(checkout: Path, tmp_path: Path) -> None:
    """Chromium, pdflatex and Gnumeric."""
    texts = [*_HOSTILE.PAYLOADS[::12], "\x1b", "=1+1", "[x]"]
    part = _SINKS.sinks(checkout, tmp_path / "sinks", texts, _HOSTILE.with_text)
    assert part["wrong"] == [] and part["passed"] == part["trials"] == 3 * part["payloads"] > 20, part


def test_readers_beside_writers(checkout: Path) -> None:
    few = "[chaos._readers.beside_writers(subject.checkout, subject.folder / 'r', 5, readers=4)]"
    (part,) = _few(checkout, few)
    assert part["wrong"] == [] and part["passed"] == part["trials"] > 0 and part["made"] > 0, part


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="NO W&B: it is not installed")
def test_a_run_before_a_wandb_that_falls_silent(checkout: Path) -> None:
    """The real client; it has 2 s for the start and the end each."""
    part = load_program(_BENCHMARKS / "_wandb.py").moods(checkout, ("silent later",), (2, 2), 25)
    assert part["wrong"] == [] and part["passed"] == part["trials"] == 1, part

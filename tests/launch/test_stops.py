"""Ctrl-C, TERM and HUP, in real processes: ``interrupted``, the checkpoint written, the next start goes on there."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from nora.files import canonical_json
from nora.store.runs import Store, read_json_lines
from nora.store.states import run_state

OWN = ["scale=smoke", "task=cb", "seed=0", "method=lora", "method.dropout=0.1", "exec.checkpoint_every=1000"]
HERE = ["exec.progress=false", "exec.device=cpu"]
RUN = [*OWN, *HERE, "protocol.epochs=60"]
WORDS = {
    "run": ["run", *RUN],
    "launch": ["launch", "table2", *RUN, "exec.processes=1"],
    "multirun": ["run", "-m", *RUN],
}


def _hear() -> None:
    """As a shell starts its foreground job, also where the suite itself was started by nohup or in the background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


def _start(checkout: Path, words: list[str]) -> subprocess.Popen[str]:
    """In a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "nora", *words],
        cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_hear,
    )  # fmt: skip


def _wait_for_step(process: subprocess.Popen[str], folder: Path, step: int, attempt: int = 1) -> None:
    end = time.monotonic() + 120
    while True:
        journals = list(folder.glob(f"runs/*/*/attempts/{attempt:04d}/journal.jsonl"))
        if journals and any(
            line["step"] >= step for line in read_json_lines(journals[0]) if line["phase"] not in ("zero shot", "test")
        ):
            return
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What the run of these words comes to; a table measures more of it than `nora run` does."""

    @cache
    def result(verb: str) -> str:
        folder = tmp_path_factory.mktemp("whole")
        _, err = _start(checkout, [*WORDS[verb], f"exec.results={folder}"]).communicate(timeout=200)
        (path,) = folder.glob("runs/*/*/record.json")
        record = Store(folder).read("finetune", path.parent.name)
        assert record is not None, err
        return canonical_json(record.result)

    return result


ALL = [
    pytest.param(verb, number, id=f"{verb}-{number.name}", marks=[] if i % 4 == 0 else pytest.mark.slow)
    for i, (verb, number) in enumerate(itertools.product(WORDS, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
]


@pytest.mark.parametrize(("verb", "number"), ALL)
def test_a_stop_saves_the_step_and_the_next_start_goes_on(
    verb: str, number: signal.Signals, undisturbed: Callable[[str], str], checkout: Path, tmp_path: Path
) -> None:
    given = [*WORDS[verb], f"exec.results={tmp_path}"]
    first = _start(checkout, given)
    _wait_for_step(first, tmp_path, 5)
    if number is signal.SIGTERM:
        first.terminate()
    else:
        os.killpg(first.pid, number)  # a terminal's go to everybody
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130 and "Traceback" not in err and "nora: stop" in err, err
    (folder,) = tmp_path.glob("runs/*/*")
    store, kind, identity = Store(tmp_path), folder.parent.name, folder.name
    stopped = run_state(store, kind, identity)
    assert stopped.state == "interrupted" and "its state is saved" in stopped.reason
    assert store.failures(kind, identity) == 0
    if verb != "run":
        assert "1 interrupted" in out
    second = _start(checkout, given)
    out, err = second.communicate(timeout=200)
    assert second.returncode == 0, err
    record = store.read(kind, identity)
    assert record is not None and canonical_json(record.result) == undisturbed("launch" if verb == "launch" else "run")
    assert record.run["resumed_at_step"] >= 5
    lines = read_json_lines(folder / "attempts" / "0002" / "journal.jsonl")
    steps = [line["step"] for line in lines if line["phase"] == "train"]
    assert steps[0] == record.run["resumed_at_step"] + 1


def test_who_does_not_ask_is_cut_off_by_the_second_order() -> None:
    code = (
        "import time\nfrom nora.execution.stops import listening\n"
        "with listening() as stops:\n    print('up', flush=True)\n    while True: time.sleep(0.05)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hear
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert process.poll() is None, "a terminal's and a launcher's order are one"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err and "once more: at once" in err


def test_what_was_started_with_hup_ignored_goes_on_ignoring_it() -> None:
    """nohup."""
    code = (
        "import os, signal\nfrom nora.execution.stops import listening\n"
        "with listening() as stops:\n    os.kill(os.getpid(), signal.SIGHUP)\n    print(stops.requested())\n"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_second_order_does_not_wait_for_a_disk_that_hangs(checkout: Path, tmp_path: Path) -> None:
    """The first waits until the state is on disk; the second waits for nothing, and the next start begins anew."""
    given = [*WORDS["run"], f"exec.results={tmp_path}"]
    code = (
        "import sys, time\nfrom nora.cli import main\nfrom nora.execution import checkpoint\n"
        "def hang(*given): print('writing', flush=True); time.sleep(600)\n"
        f"checkpoint.write_atomic = hang\nsys.exit(main({given!r}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(checkout / "src")}, preexec_fn=_hear,
    )  # fmt: skip
    try:
        _wait_for_step(process, tmp_path, 5)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        time.sleep(1.2)
        assert process.poll() is None, "the first order waits"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err, err
    (folder,) = tmp_path.glob("runs/*/*")
    assert run_state(Store(tmp_path), folder.parent.name, folder.name).state == "interrupted"

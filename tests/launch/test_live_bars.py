"""What somebody sees of runs under way: a bar on a terminal, a line a minute where it is piped, the test phase too."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nora.execution import progress
from nora.execution.progress import Pace, Reporter, Sight, progress_bar, step_text
from nora.kinds.parts.recipe import Update
from nora.launch.local import Board, Finished, launch_local
from nora.store.attempt import Attempt
from nora.store.runs import Store, last_update, read_json_lines
from nora.store.states import State


def on_a_terminal(*words: str, columns: int, letters: str = "utf-8") -> tuple[int, str]:
    """`nora WORDS` on a terminal of so many columns: the exit code and everything that was drawn."""
    pid, descriptor = pty.fork()
    if pid == 0:
        environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
        environment["PYTHONIOENCODING"] = letters
        os.execve(sys.executable, [sys.executable, "-m", "nora", *words], environment)
    drawn = b""
    while True:
        try:
            part = os.read(descriptor, 1 << 16)
        except OSError:  # how a terminal says that nobody is left
            break
        drawn += part
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), drawn.decode(errors="replace")


def test_a_launch_on_a_terminal_draws_runs_steps_and_loss(tmp_path: Path) -> None:
    columns = 60
    words = ["launch", "table2", "task=cb", "method=lora", "seed=0", "scale=smoke", f"exec.results={tmp_path}"]
    code, drawn = on_a_terminal(*words, columns=columns)
    assert code == 0 and "table2: planning" in drawn, drawn
    assert "0/1 runs · 1 starting" in drawn
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert re.search(r"\[1/1\] done +lora +cb +seed 0", plain) and "1 done" in plain.splitlines()[-1]
    for line in re.split(r"[\r\n]+", plain):
        assert len(line) <= columns or not line.startswith(tuple("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")), line


def test_a_terminal_of_few_letters_sees_no_codes(tmp_path: Path) -> None:
    code, drawn = on_a_terminal(
        "run", "scale=smoke", "task=cb", f"exec.results={tmp_path}", columns=80, letters="latin-1"
    )
    assert code == 0 and "seed 0: starting" in drawn and "\\u" not in drawn, drawn


@pytest.mark.parametrize(
    ("words", "said"),
    [(["verify", "table2", "task=cb"], "verifying the records"),
     (["plan", "table2", "table3", "scale=smoke"], "planning"),
     (["export", "--dry-run"], "reading the records")],
    ids=["verify", "plan", "export"],
)  # fmt: skip
def test_what_reads_much_draws_the_time_left(words: list[str], said: str, tmp_path: Path) -> None:
    for kind, identity in (("factorize", "*"), ("finetune", "[0-3]*")):
        for path in (Path(__file__).parents[2] / "results" / "runs" / kind).glob(identity):
            (tmp_path / "runs" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "runs" / kind / path.name).symlink_to(path)
    code, drawn = on_a_terminal(*words, f"exec.results={tmp_path}", columns=70)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    bars = [line for line in re.split(r"[\r\n]+", plain) if line.startswith(said)]
    assert code == 0 and bars and re.search(r"\d+% +[-\d]+:", bars[-1]), drawn
    assert all(len(line) <= 70 for line in bars)
    done = subprocess.run(
        [sys.executable, "-m", "nora", *words, f"exec.results={tmp_path}"], capture_output=True, text=True, check=True
    )
    assert said not in done.stdout + done.stderr, "where nobody looks nothing is drawn"


@pytest.mark.slow
def test_a_run_on_a_terminal_draws_its_phases_and_leaves_one_line(tmp_path: Path) -> None:
    code, drawn = on_a_terminal("run", "scale=smoke", "task=cb", f"exec.results={tmp_path}", columns=80)
    assert code == 0 and "starting" in drawn and "\x1b[" in drawn
    assert "init proved" in drawn.splitlines()[-1]


def test_piped_there_is_a_line_now_and_then_and_none_where_nobody_asked(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Sight, "EVERY_SECONDS", 0.02)
    said = ""
    with progress_bar("nora", enabled=True) as show:
        for update, line in (
            (Update("train", 3, 12, {"loss": 0.5, "lr": 1e-3}), "nora train 3/12 loss 0.5, 0.0 min so far\n"),
            (Update("te\x1b[2Jst", 5, 8, {}), "nora te?[2Jst 5/8, 0.0 min so far\n"),
        ):
            show(update)
            while line not in said:  # until the test's own time limit
                said += capfd.readouterr().err
    with progress_bar("nora", enabled=False) as show:
        show(Update("train", 3, 12, {}))
        time.sleep(0.1)
    assert capfd.readouterr().err == ""


def test_time_left_is_measured_since_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace.left(0, 50) == ""  # imports take what they take: no step was seen
    now[0] = 130.0
    assert pace.left(2, 50) == ""
    now[0] = 142.0
    assert pace.left(8, 50) == "1.4 min left"  # 2 s a step since the second, 42 steps
    assert step_text("test", 0, 1, {}) == "test" and step_text("train", 1, 9, {"loss": 2.0}) == "train 1/9 loss 2"


def test_the_board_counts_runs_and_what_each_is_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    cells = [SimpleNamespace(id=letter * 16, row="nora", column="cb", seed=0, spec=SimpleNamespace(kind="finetune"))
             for letter in "abc"]  # fmt: skip
    planned: Any = [SimpleNamespace(cell=cell, hours=hours) for cell, hours in zip(cells, (1.0, 2.0, 1.0), strict=True)]
    monkeypatch.setattr("nora.launch.local.predicted", lambda cell: SimpleNamespace(hours=None))
    workspace: Any = SimpleNamespace(store=store, settings=SimpleNamespace(progress=False))
    board = Board("table2", planned, workspace)
    seen: list[tuple[float, Any, str]] = []
    monkeypatch.setattr(board.sight, "update", lambda *what: seen.append(what))
    said: list[str] = []
    monkeypatch.setattr(board.sight, "say", said.append)
    running: Any = cells[:2]
    board.look(running)
    assert seen[-1] == (0.0, 4.0, "0/3 runs · 2 starting")
    folder = tmp_path / "runs" / "finetune" / cells[1].id / "attempts" / "0001"
    folder.mkdir(parents=True)
    stamp = json.dumps(Attempt(folder).stamp()) + "\n"
    (folder / "journal.jsonl").write_text(stamp + '{"phase": "train", "step": 5, "total": 10, "loss": 0.7}\n{"pha')
    board.look(running)
    assert seen[-1] == (0.9, 4.0, "0/3 runs · nora cb 0: train 5/10 loss 0.7 (+1)")
    board.ended(Finished(running[0], "done"))
    (folder / "journal.jsonl").write_text(stamp + '{"phase": "test", "step": 30, "total": 60}\n')
    board.look(running[1:])
    assert seen[-1][:2] == (pytest.approx(1 + 2 * 0.95), 4.0) and "1/3 runs · nora cb 0: test 30/60" in seen[-1][2]
    assert said == [f"[1/3] done     nora       cb       seed 0  {cells[0].id}"]


def test_the_end_of_a_long_journal_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert last_update(path) is None
    path.write_text("".join(json.dumps({"phase": "train", "step": k, "total": 9999}) + "\n" for k in range(9999)))
    assert last_update(path) == read_json_lines(path)[-1]
    path.write_text("no line of a journal\n[1]\n")
    assert last_update(path) is None


def test_an_evaluation_says_how_far_it_is_and_the_journal_is_not_flooded(tmp_path: Path) -> None:
    seen: list[Update] = []
    folder = tmp_path / "0001"
    folder.mkdir()
    with Reporter(Attempt(folder), SimpleNamespace(log=None), seen.append) as report:  # type: ignore[arg-type]
        for done in range(1000):
            report(Update("test", done, 1000, {}))
        report(Update("train", 1, 2, {}))
    assert len(seen) == 1001
    assert len(folder.joinpath("journal.jsonl").read_text().splitlines()) < 100


def test_a_launch_says_what_it_leaves_waiting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage 1 is another process's, or failed there: nothing is to be done here yet."""
    states = [(State.RUNNING, ""), (State.WAITS, "for LoRA"), (State.WAITS, "for LoRA")]
    planned = [SimpleNamespace(cell=SimpleNamespace(id=None), state=state, reason=reason) for state, reason in states]
    monkeypatch.setattr("nora.launch.local.current_plan", lambda *given: planned)
    target: Any = SimpleNamespace(headline="table2 at scale=mini")
    assert launch_local(target, SimpleNamespace()) == 1  # type: ignore[arg-type]
    assert capsys.readouterr().out.splitlines() == [
        "table2 at scale=mini: 1 running, 2 waits",
        "  2 wait for LoRA, which is not done: the same command goes on from there",
    ]

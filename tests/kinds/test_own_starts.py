"""A start of one's own, in a folder or in another package: it runs, is proved and tabulated, without a fork."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nora import cli, starts

INIT = '''"""The weight's own rows, a stretch of them: A = gain * W[skip:skip + r], B = 0."""

import torch
from torch import Tensor

from nora.adapters.inits import Factors

PEFT_INIT = True
MOVES_BASE = False
OPTIONS = {"gain": 0.5, "skip": 0}


def factors(
    weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator, gain: float = 0.5, skip: int = 0
) -> Factors:
    """A [r, in] and a zero B."""
    return Factors(gain * weight[skip : skip + rank].float(), torch.zeros(weight.shape[0], rank))
'''
METHOD = "defaults:\n  - lora\n  - _self_\nname: rows\ninit: own_rows\ngain: 0.25\n"
TABLE = """cells_of: table2
title: A start of one's own
layout: methods_by_tasks
rows: [lora, rows]
below_rule: []
search:
  first: lora
  reuse: []
  grid:
    lora: {protocol.lr: [1.0e-3]}
    rows: {protocol.lr: [1.0e-3], method.skip: [0, 2]}
"""
RUN = ["run", "scale=smoke", "task=cb", "method=rows", "exec.progress=false"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"inits/own_rows.py": INIT, "method/rows.yaml": METHOD, "table/own.yaml": TABLE}.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "mine"


def _record(results: Path) -> dict[str, object]:
    (path,) = results.glob("runs/finetune/*/record.json")
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_an_init_of_a_folder_runs_and_its_options_are_its_schema(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*RUN, f"exec.results={tmp_path / 'results'}", "method.skip=1", "--config-dir", str(folder)]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert "rows on cb" in (out := capsys.readouterr().out) and "init proved" in out
    spec = _record(tmp_path / "results")["result"]["spec"]  # type: ignore[index]
    assert spec["method"]["options"] == {"gain": 0.25, "skip": 1}
    assert spec["method"]["source"] == __import__("hashlib").sha256(INIT.encode()).hexdigest()
    assert "own_rows" not in starts.names("inits"), "a folder counts for its own command alone"


@pytest.mark.parametrize(
    "word, message",
    [
        ("method.skip=1.5", "skip: given 1.5, required a int"),
        ("method.gain=none", "gain: given 'none', required a float"),
        ("method.gian=1.0", "method.gian: unknown key"),
    ],
)
def test_a_wrong_option_of_ones_own_is_refused(
    word: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*RUN, word, f"--config-dir={folder}"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*RUN, "--config-dir", "/no/such"]) == 2
    assert "--config-dir: given '/no/such', required a folder" in capsys.readouterr().err


def test_editing_the_file_is_another_run(folder: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nora.config.spec import run_id
    from nora.kinds import compose_run

    monkeypatch.setenv(starts.FOLDER, str(folder))
    one = run_id(compose_run(checkout, RUN[1:])[0])
    path = folder / "inits" / "own_rows.py"
    path.write_text(path.read_text() + "\n# another idea\n")
    assert run_id(compose_run(checkout, RUN[1:])[0]) != one


def test_it_is_tabulated(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = [f"exec.results={tmp_path / 'results'}", "--config-dir", str(folder)]
    words = ["own", "scale=smoke", "task=cb", "seed=0"]
    assert cli.main(["launch", *words, "exec.processes=1", *place]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert cli.main(["collate", *words, *place]) == 0, capsys.readouterr().err
    text = (tmp_path / "results" / "tables" / "own.smoke.md").read_text(encoding="utf-8")
    assert "| rows" in text and "missing" not in text


def test_an_init_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    (site / "own-1.0.dist-info").mkdir(parents=True)
    (site / "own-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (site / "own-1.0.dist-info" / "entry_points.txt").write_text("[nora.inits]\nown_rows = own_rows_module\n")
    (site / "own_rows_module.py").write_text(INIT)
    monkeypatch.syspath_prepend(site)
    starts._entry_points.cache_clear()
    try:
        assert "own_rows" in starts.names("inits")
        words = ["run", "scale=smoke", "task=cb", "method=lora", "method.init=own_rows", "exec.progress=false"]
        assert cli.main([*words, f"exec.results={tmp_path / 'results'}"]) == 0, capsys.readouterr().err
        assert "init proved" in capsys.readouterr().out
    finally:
        monkeypatch.undo()
        starts._entry_points.cache_clear()

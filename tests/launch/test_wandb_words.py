"""W&B's own variables: they win over what is not typed, a machine that is offline stays so, and each is said."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nora import cli
from nora.errors import UserError
from nora.execution import tracker
from nora.workspace import open_workspace, with_wandb

CASES: dict[str, tuple[dict[str, str], list[str], tuple[str, str], str]] = {
    "nothing": ({}, [], ("none", "nora"), ""),
    "a mode": ({"WANDB_MODE": "offline"}, [], ("offline", "nora"), "W&B: offline (WANDB_MODE)"),
    "disabled": ({"WANDB_MODE": "disabled"}, ["exec.wandb=online"], ("none", "nora"),
                 "W&B: exec.wandb=online is typed, WANDB_MODE=disabled is set: none it is"),
    "offline wins": ({"WANDB_MODE": "offline"}, ["exec.wandb=online"], ("offline", "nora"),
                     "W&B: exec.wandb=online is typed, WANDB_MODE=offline is set: offline it is"),
    "typed wins": ({"WANDB_MODE": "online"}, ["exec.wandb=none"], ("none", "nora"),
                   "W&B: exec.wandb=none is typed, WANDB_MODE=online is set: none it is"),
    "agreed": ({"WANDB_MODE": "online"}, ["exec.wandb=online"], ("online", "nora"), ""),
    "where": ({"WANDB_PROJECT": "mine", "WANDB_ENTITY": "me", "WANDB_DIR": "/w"}, ["exec.wandb=offline"],
              ("offline", "mine"), "W&B: project mine (WANDB_PROJECT); "
              "entity me (WANDB_ENTITY); folder /w (WANDB_DIR)"),
    "a typed project": ({"WANDB_PROJECT": "mine"}, ["exec.wandb=offline", "exec.wandb_project=typed"],
                        ("offline", "typed"), ""),
    "nobody asked": ({"WANDB_PROJECT": "mine"}, [], ("none", "mine"), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_wins_and_what_is_said(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, words, (mode, project), said = CASES[case]
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = open_workspace(words).settings
    assert (settings.wandb, settings.wandb_project, with_wandb(words)[1]) == (mode, project, said)


def test_a_mode_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match="WANDB_MODE: given 'ofline', allowed online, run, offline, dryrun, disabled"):
        with_wandb([])


def test_an_upload_says_where_it_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert cli.main(["sync-wandb", "table2", "scale=smoke", "task=cb", "--dry-run", f"exec.results={tmp_path}"]) == 0
    assert capsys.readouterr().err == "W&B: project mine (WANDB_PROJECT)\n"


def test_a_run_hands_it_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[dict[str, Any]] = []

    def init(**words: Any) -> Any:
        given.append(words)
        return SimpleNamespace(log=lambda values, step: None, summary={}, finish=lambda: None)

    spec = ModuleSpec("wandb", None)  # other libraries look whether it is installed
    fake = SimpleNamespace(__spec__=spec, init=init, Settings=lambda **kw: kw, api=SimpleNamespace(api_key="key"))
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_PROJECT", "mine"), ("WANDB_DIR", str(tmp_path / "w"))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tracker, "_FINISH_SECONDS", 30)
    words = ["scale=smoke", "task=cb", "exec.device=cpu", "exec.progress=false", f"exec.results={tmp_path / 'store'}"]
    assert cli.main(["run", *words]) == 0
    assert [(w["mode"], w["project"], w["dir"]) for w in given] == [("offline", "mine", str(tmp_path / "w"))]
    assert "W&B: offline (WANDB_MODE); project mine (WANDB_PROJECT); folder" in capsys.readouterr().err

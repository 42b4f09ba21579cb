"""``--json`` of every verb that reads: the README's table says its keys, and nothing else has the flag."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from nora import cli

_RUN, _OTHER = "0bd467144da3b98a", "12cc360a72bac14b"
_Json = Any
CASES: dict[str, tuple[list[str], Callable[[_Json], _Json]]] = {
    "plan": (["plan", "table2", "task=cb", "method=lora"], lambda found: found["table2"][0]),
    "show": (["show", _RUN], lambda found: found),
    "diff": (["diff", _RUN, _OTHER], lambda found: found),
    "trace": (["trace", "table2", "NoRA+,CB"], lambda found: found),
    "why": (["why", _RUN], lambda found: found),
    "logs": (["logs", _RUN], lambda found: found),
    "verify": (["verify", "deployment"], lambda found: found),
    "claims": (["claims", "few-shot-nora"], lambda found: found[0]),
    "theory": (["theory", "--only", "Lemma 10"], lambda found: found),
    "list": (["list", "methods"], lambda found: found[0]),
    "doctor": (["doctor"], lambda found: found[0]),
    "task show": (["task", "show", "cb", "-n", "1", "model=opt_mini"], lambda found: found),
}


def _stated(checkout: Path) -> dict[str, str]:
    """The README's table: verb → its row."""
    page = (checkout / "README.md").read_text(encoding="utf-8").partition("What only reads has `--json`")[2]
    table = page.partition("\n\n")[2].partition("\n\n")[0]
    return {verb: row for verb, row in re.findall(r"^\| `([a-z ]+)` \| (.*) \|$", table, re.MULTILINE)}


@pytest.mark.parametrize("verb", CASES)
def test_it_prints_the_keys_that_are_stated(verb: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, part = CASES[verb]
    assert cli.main([*words, "--json"]) == 0
    found = set(part(json.loads(capsys.readouterr().out)))
    row = _stated(checkout)[verb]
    stated = re.findall(r"`([a-z_0-9]+)`", re.split(r", (?:a list of `path`|each with)|; of runs", row)[0])
    assert stated and found == set(stated)


def test_runs_and_states(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "runs", "nora_plus", "sst2", "--json"]) == 0
    stated = re.findall(r"`([a-z_0-9]+)`", _stated(checkout)["list"].partition("; of runs")[2])
    assert set(json.loads(capsys.readouterr().out)[0]) == set(stated)
    assert cli.main(["status", "table2", "task=cb", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"table2": {"done": 60}}


def test_every_verb_that_has_the_flag_is_in_the_table(checkout: Path) -> None:
    top = click.Context(cli.nora)
    flagged = set()
    for name in cli.nora.list_commands(top):
        command = cli.nora.get_command(top, name)
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        for more, one in inner.items():
            if any("--json" in parameter.opts for parameter in one.params):  # type: ignore[union-attr]
                flagged.add(f"{name} {more}".strip())
    assert flagged == set(_stated(checkout)) == {*CASES, "status"}

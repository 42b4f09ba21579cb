"""What a newcomer types: nothing, `help`, `list`, a verb with a slip; each verb's help has an example."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from nora import cli

Out = pytest.CaptureFixture[str]


def test_nora_alone_says_what_one_does_first(capsys: Out) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    for words in ("nora list methods", "nora run ", "nora plan ", "nora launch ", "nora collate ", "nora help"):
        assert words in out


def test_a_slip_is_answered_with_what_was_meant(capsys: Out) -> None:
    assert cli.main(["lanch", "table2"]) == 2
    assert "did you mean launch?" in capsys.readouterr().err
    assert cli.main(["list", "metods"]) == 2
    assert "did you mean methods?" in capsys.readouterr().err
    assert cli.main(["help", "colate"]) == 2
    assert "did you mean collate?" in capsys.readouterr().err


def test_help_of_all_and_of_each_verb_has_an_example(capsys: Out) -> None:
    assert cli.main(["help"]) == 0
    listed = capsys.readouterr().out
    for verb in cli._VERBS:
        assert f"  {verb} " in listed
        assert cli.main(["help", verb]) == 0
        out = capsys.readouterr().out
        assert f"nora {verb} " in out
        if verb not in ("run", "theory", "completion"):
            assert f"Example: nora {verb} {cli._EXAMPLES[verb]}" in " ".join(out.split())


@pytest.mark.parametrize("verb", ["plan", "status", "list", "trace"])
def test_examples_do_something(verb: str, capsys: Out) -> None:
    words = [word for word in shlex.split(cli._EXAMPLES[verb]) if word != "--watch"]
    assert cli.main([verb, *words]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("what", ["methods", "tasks", "models", "protocols", "scales", "tables"])
def test_a_list_has_every_choice_and_says_what_it_is(what: str, checkout: Path, capsys: Out) -> None:
    assert cli.main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = sorted(path.stem for path in (checkout / "conf" / what.removesuffix("s")).glob("*.yaml"))
    assert sorted(line.split()[0] for line in lines) == files
    assert all(len(line.split()) > 1 for line in lines)
    assert cli.main(["list", what, "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [line.split()[0] for line in lines]


def test_runs_are_found_by_words(capsys: Out) -> None:
    assert cli.main(["list", "runs", "nora_plus", "SST2", "smollm2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all("nora_plus on sst2, smollm2" in row["run"] and row["state"] == "done" for row in rows)
    assert cli.main(["list", "runs", "nothing-like-this"]) == 0
    assert capsys.readouterr().out.strip() == ""

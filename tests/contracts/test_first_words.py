"""What a newcomer types: nothing, `help`, `list`, a verb with a slip; each verb's help has an example."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nora import cli
from nora.tables.cell import names

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
    assert cli.main(["theory", "--only", "Lemma 100"]) == 2
    assert "did you mean Lemma 10?" in capsys.readouterr().err
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


@pytest.mark.parametrize("verb", ["model add", "task show"])
def test_help_of_a_verb_of_two_words_has_its_example(verb: str, capsys: Out) -> None:
    assert cli.main([*verb.split(), "--help"]) == 0
    assert f"Example: nora {verb} " in capsys.readouterr().out


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


def test_words_narrow_any_list(capsys: Out) -> None:
    assert cli.main(["list", "methods", "PiSSA"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["pissa", "pissa_niter"]


def test_a_list_says_what_ones_own_choices_are(tmp_path: Path, capsys: Out) -> None:
    (tmp_path / "scale").mkdir()
    (tmp_path / "scale" / "wee.yaml").write_text("# @package _global_\n# My evening.\nscale: {name: wee}\n")
    assert cli.main(["list", "scales", "--config-dir", str(tmp_path)]) == 0
    assert "wee    My evening." in capsys.readouterr().out


def test_a_pipe_that_nobody_reads_on_is_no_error(checkout: Path) -> None:
    """`nora … | head -1` under pipefail: nothing on standard error, and 0."""
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m nora list methods | true"
    done = subprocess.run(["bash", "-c", command], cwd=checkout, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_runs_are_found_by_words(capsys: Out) -> None:
    assert cli.main(["list", "runs", "nora_plus", "SST2", "smollm2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all("nora_plus on sst2, smollm2" in row["run"] and row["state"] == "done" for row in rows)
    assert cli.main(["list", "runs", "nothing-like-this"]) == 0
    assert capsys.readouterr().out.strip() == ""


def test_the_targets_that_help_names_are_those_there_are(checkout: Path, capsys: Out) -> None:
    assert cli.main(["help", "plan"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    listed = out.partition("TARGET: ")[2].partition(";")[0].replace(", or all", ", all").split(", ")
    known = set(names(checkout))
    for one in listed:
        first, _, last = one.partition(" … ")
        stem = first.rstrip("0123456789")
        numbers = range(int(first.removeprefix(stem) or 1), int(last.removeprefix(stem) or 1) + 1) if last else []
        known -= {f"{stem}{number}" for number in numbers} or {first}
    assert not known and listed[-1] == "all"
    assert cli.main(["show", "--help"]) == 0
    assert "TARGET:" not in capsys.readouterr().out


def test_an_id_that_several_have_lists_them(capsys: Out) -> None:
    assert cli.main(["show", "0"]) == 2
    err = capsys.readouterr().err
    assert " records of " in err and err.count(" on ") >= 5 and err.count("\n") == 1 and len(err) < 600


@pytest.mark.parametrize("verb", ["why", "logs"])
def test_a_run_that_several_ids_begin_with_lists_them(verb: str, checkout: Path, capsys: Out) -> None:
    """Runs without a record too, which have an id and no name yet."""
    assert cli.main([verb, "0"]) == 2
    err = capsys.readouterr().err
    first = sorted(path.name for path in (checkout / "results").glob("runs/*/0*"))[0]
    assert f"required one: {first}; " in err and err.endswith("; …\n") and err.count("\n") == 1


def test_a_cell_that_is_none_is_one_plain_line(capsys: Out) -> None:
    assert cli.main(["trace", "table2", "XYZ"]) == 2
    assert "CELL: given 'XYZ', required METHOD/COLUMN with a method of prefix, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=nora", "method.init=pisa"], "method.init: given pisa, did you mean pissa? allowed"),
        (["-cn", "nonsense"], "'nonsense'. Check that it's in your config search path.\n"),
        (["-m", "protocol.lr=interval(1e-4,1e-2)"], "give key=a,b or choice(a,b), or hydra/sweeper=optuna"),
        (["--multirn", "seed=0,1"], "flag: given '--multirn', did you mean --multirun? allowed"),
        (["--info", "defalts"], "--info: given 'defalts', did you mean defaults? allowed all, config"),
        (["--cfg=jobs"], "--cfg: given 'jobs', did you mean job? allowed job, hydra, all"),
    ],
)
def test_a_wrong_word_of_run_is_one_line(words: list[str], said: str, capsys: Out) -> None:
    assert cli.main(["run", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1

"""A wrong config is one clear line on standard error and exit code 2: path, given, allowed, nearest name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nora import cli
from nora.config import limits
from nora.config.compose import compose_config
from nora.errors import UserError
from nora.kinds import compose_run
from nora.tables.methods import load_table

TABLE = [
    (["protocol.learning_rate=1"], ["protocol.learning_rate: unknown key", "allowed here: version, lr, batch_size"]),
    (["method.rnk=4"], ["method.rnk: unknown key", "did you mean method.rank?"]),
    (["+method.rnk=4"], ["method.rnk: unknown key", "did you mean method.rank?"]),
    (["++protocol.lrr=4"], ["protocol.lrr: unknown key", "did you mean protocol.lr?"]),
    (["sed=1"], ["sed: unknown key", "did you mean seed?"]),
    (["+methid=lora"], ["methid: unknown key", "did you mean method?"]),
    (["task=cb,rte"], ["task=cb,rte: several values", "nora run -m"]),
    (["method=norra", "task=cbb"], ["did you mean nora?", "did you mean cb?"]),
    (["experiment=foo"], ["experiment: given 'foo', allowed nora_side_b"]),
    (["-m", "hydra.foo=1", "scale=smoke"], ["hydra.foo"]),
    (["-m", "hydra/launcher=nope", "scale=smoke"], ["hydra/launcher/nope"]),
    (["-m", "--cfg", "job", "method=lora,nora"], ["--cfg: given with -m"]),
    (["method="], ["method: given '', allowed corda, dora, eva"]),
    (["method.rank=eight"], ["method.rank: given 'eight'", "integer"]),
    (["method.rank=8.5"], ["method.rank: given 8.5"]),
    (["method.rank=0"], ["method.rank: given 0", "greater than or equal to 1"]),
    (["protocol.epochs=1000000000000"], ["protocol.epochs: given 1000000000000", "less than or equal to 1000000000"]),
    (["exec.results=/etc/passwd"], ["exec.results: given /etc/passwd, which is a file; required a folder"]),
    (["method.rank=true"], ["method.rank: given True"]),
    (["protocol.lr=0"], ["protocol.lr: given 0", "greater than 0"]),
    (["protocol.lr=-1e-3"], ["protocol.lr: given -0.001"]),
    (["protocol.lr=nan"], ["protocol.lr"]),
    (["protocol.lr=inf"], ["protocol.lr"]),
    (["seed=-1"], ["seed: given -1"]),
    (["seed=4294967296"], ["seed: given 4294967296", "4294967296"]),
    (["seed=null"], ["seed: required"]),
    (["seed=1.5"], ["seed: given 1.5"]),
    (["method.side=C"], ["method.side: given 'C'", "'A' or 'B'"]),
    (["protocol.precision=fp8"], ["protocol.precision: given 'fp8'", "'fp32' or 'bf16'"]),
    (["protocol.schedule=linaer"], ["did you mean linear?"]),
    (["method=norra"], ["method: given 'norra'", "lora_plus, milora, nora, nora_plus", "did you mean nora?"]),
    (["task=cbb"], ["task: given 'cbb'", "did you mean cb?"]),
    (["scale=big"], ["scale: given 'big', allowed mini, paper, small, smoke"]),
    (["method=null"], ["method=null: ", "must be a string"]),
    (["protocol.lr=???"], ["protocol.lr", "required"]),
    (["method=lora", "method.xi=0.1"], ["xi has no meaning with init=kaiming"]),
    (["method=prefix", "method.rank=4"], ["rank has no meaning with adapter=prefix"]),
    (["method.xi=null"], ["xi is required with init=nystrom"]),
    (["exec.threads=0"], ["exec.threads: given 0"]),
    (["exec.thread=2"], ["exec.thread: unknown key", "did you mean exec.threads?"]),
    (["measure=[spectrm]"], ["measure.0: given 'spectrm'", "did you mean spectrum?"]),
    (["lr"], ["an override is key=value"]),
    (["a=b=c["], ["an override is key=value"]),
    (["protocol.lr=${nowhere.at.all}"], ["nowhere"]),
    (["protocol.lr=${protocol.lr}"], ["refers to itself"]),
    (["task.num_train=[[[["], ["an override is key=value"]),
    (["~protocol.lr"], ["protocol.lr: missing"]),
    (["method=[1,2]"], ["method: given '[1,2]', allowed corda, dora"]),
    (["+kind={a: 1}"], ["kind: given '{a: 1}', allowed deployment"]),
    (["kind=dreamboth"], ["kind: given 'dreamboth'", "did you mean dreambooth?"]),
]


@pytest.mark.parametrize("overrides, parts", TABLE, ids=[" ".join(o) for o, _ in TABLE])
def test_one_clear_line_and_exit_code_2(
    overrides: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *overrides]) == 2
    out, err = capsys.readouterr()
    assert out == "" or overrides[0] == "-m", "a multirun says first how many jobs it has"
    assert err.startswith("nora: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def test_all_problems_of_a_config_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["seed=-1", "method.rank=0", "protocol.lrr=1", "exec.threads=0", "measure=[x]", "method.side=C"]
    assert cli.main(["run", *wrong]) == 2
    err = capsys.readouterr().err
    for path in ("seed: ", "method.rank: ", "protocol.lrr: ", "exec.threads: ", "measure.0: ", "method.side: "):
        assert path in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["plan"], ["plan", "tabel2"], ["plan", "table2", "task=xx"], ["nonsense"]])
def test_wrong_words_of_other_verbs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(words)
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    err = capsys.readouterr().err
    assert err and "Traceback" not in err


def test_a_wrong_config_is_refused_before_torch_is_imported(checkout: Path) -> None:
    code = (
        "import sys; from nora.cli import main; code = main(['run', 'method.rnk=1']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=checkout, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "method.rnk: unknown key" in done.stderr


@pytest.fixture
def copy(checkout: Path, tmp_path: Path) -> Path:
    """A folder like the checkout, whose conf/ may be broken."""
    shutil.copytree(checkout / "conf", tmp_path / "c" / "conf")
    return tmp_path / "c"


def _refused(copy: Path, *overrides: str) -> str:
    limits.check_folder.cache_clear()
    with pytest.raises(UserError) as error:
        compose_config(copy / "conf", overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "text, part",
    [
        ("name: nora\n  rank: [8\n", "nora.yaml, line 2: not valid YAML"),
        ("a: &a [1, 2]\nb: *a\n", "nora.yaml, line 2: YAML aliases are not allowed"),
        ("a: " + "[" * 40 + "]" * 40, "nora.yaml: nested deeper than 32"),
        ("lr: 1\nxi: 2\nlr: 3\n", "nora.yaml, line 3: lr stands twice; keep one"),
        ("a: {b: 1, c: [{b: 1}, {b: 2}], b: 2}\n", "nora.yaml, line 1: b stands twice"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: the tag tag:yaml.org,2002:python/object/apply:os.getcwd"),
        ("a: !!binary aGk=\n", "line 1: the tag tag:yaml.org,2002:binary is not allowed"),
        ("a: [" + "1," * 20_000 + "]", "nora.yaml: more than 10000 values"),
        ("a: " + "x" * 1_100_000, "bytes, allowed 1000000"),
        ("\t- x: %", "nora.yaml, line 1: not valid YAML"),
        ("x: \x07", "nora.yaml"),
        ("xi: -" + "9" * 5_000, "nora.yaml, line 1: a number of 5001 digits, allowed 300"),
    ],
    ids=[
        "syntax",
        "alias",
        "deep",
        "twice",
        "twice within",
        "python tag",
        "tag",
        "many",
        "large",
        "tab",
        "control",
        "digits",
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_quickly(copy: Path, text: str, part: str) -> None:
    (copy / "conf" / "method" / "nora.yaml").write_text(text, encoding="utf-8")
    assert part in _refused(copy)


def test_a_yaml_alias_bomb_is_refused_quickly(copy: Path) -> None:
    """Nine levels of nine: a billion laughs."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (copy / "conf" / "task" / "cb.yaml").write_text("\n".join(lines))
    assert "aliases are not allowed" in _refused(copy)


@pytest.mark.parametrize("levels", [8, 30])
def test_an_interpolation_bomb_is_refused_quickly(copy: Path, levels: int) -> None:
    """Each level refers to the one before ten times; OmegaConf alone would build 10^levels values."""
    lines = ["b0: [" + ", ".join(["x"] * 10) + "]"]
    lines += [f"b{i}: [" + ", ".join([f'"${{b{i - 1}}}"'] * 10) + "]" for i in range(1, levels)]
    file = copy / "conf" / "config.yaml"
    file.write_text(file.read_text() + "\n" + "\n".join(lines) + "\n")
    assert "references grow to more than 10000 values" in _refused(copy)


def test_a_bomb_typed_on_the_command_line_is_refused_quickly(copy: Path) -> None:
    bomb = ["b0=[1,1,1,1,1,1,1,1,1,1]"] + [f"b{i}=[" + ",".join([f"${{b{i - 1}}}"] * 10) + "]" for i in range(1, 9)]
    assert "10000 values" in _refused(copy, *bomb)
    assert "too many or too deeply nested" in _refused(copy, "measure=" + "[" * 100 + "]" * 100)
    assert "characters, allowed 10000" in _refused(copy, "measure=" + "x" * 20_000)


def _levels(reference: str, top: str = "") -> list[str]:
    """Twelve levels, each of which refers to the one before ten times."""
    levels = [f"{top}b0=[1,1,1,1,1,1,1,1,1,1]"]
    return levels + [f"{top}b{i}=[" + ",".join([reference.replace("#", f"b{i - 1}")] * 10) + "]" for i in range(1, 12)]


@pytest.mark.parametrize(
    "words", [_levels("${oc.select:#}"), _levels("${..#}"), ["top={}", *_levels("${top[#]}", "top.")]]
)
def test_a_bomb_that_no_pattern_sees_is_refused(copy: Path, words: list[str]) -> None:
    assert "10000 values" in _refused(copy, *words)


def test_a_bomb_in_a_table_is_refused(copy: Path) -> None:
    lines = ["b0: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"b{i}: [" + ", ".join([f'"${{table.b{i - 1}}}"'] * 10) + "]" for i in range(1, 12)]
    file = copy / "conf" / "table" / "table2.yaml"
    file.write_text(file.read_text() + "\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"conf/table/table2.yaml: its references grow to more than 10000 values"):
        load_table(copy, "table2")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("exec=[[[]]]", "exec: given '[[[]]]', allowed local, slurm"),
        ("scale=../scale/mini", "scale: given '../scale/mini', allowed mini"),
        ("model=[opt_mini,opt_mini]", "model: given '[opt_mini,opt_mini]', allowed"),
        ("model=${oc.decode:'1'}", "model: given \"${oc.decode:'1'}\", allowed"),
        ("a" + "." * 1500 + "=1", "a key of 1501 characters, allowed 200"),
        ("a." * 130 + "a=1", "a key of 261 characters, allowed 200"),
    ],
)
def test_what_is_no_choice_is_refused_with_the_choices(copy: Path, word: str, line: str) -> None:
    assert line in _refused(copy, word)


@pytest.mark.parametrize(
    "words", [["run"], ["run", "-m"], ["plan", "table2"], ["launch", "table2", "scale=smoke"], ["status", "fig1"]]
)
def test_a_number_of_thousands_of_digits_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Python itself refuses to read one."""
    for key in ("protocol.lr", "method.rank") if "fig1" not in words else ("solver.eta",):
        assert cli.main([*words, f"{key}={'9' * 5_000}"]) == 2
        err = capsys.readouterr().err
        assert f"{key}=9" in err and "a number of 5000 digits, allowed 300" in err and err.count("\n") == 1


def test_thousands_of_words_are_refused_at_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nora.config.compose.OverridesParser", None)
    assert "5000 words, allowed 500" in _refused(copy, *(f"protocol.x{i}=1" for i in range(5_000)))


@pytest.mark.parametrize("word", ["hydra/launcher=[1,2]", "hydra/launcher={a: 1}", "hydra/sweeper=${oc.env:HOME}"])
@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_what_is_no_choice_of_hydras_is_one_line(
    word: str, multirun: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    group, _, value = word.partition("=")
    assert cli.main(["run", *multirun, word, "scale=smoke"]) == 2
    err = capsys.readouterr().err
    assert f"{group}: given {value!r}, required the name of one choice" in err and err.count("\n") == 1


def test_a_deployment_of_another_kind_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "deployment", "kind=dreambooth"]) == 2
    assert "deployment is made of kind=deployment, given dreambooth" in capsys.readouterr().err


def test_a_byte_that_is_no_utf_8_is_one_line(copy: Path) -> None:
    (copy / "conf" / "method" / "nora.yaml").write_bytes(b"name: n\xf6ra\n")
    assert "nora.yaml: no UTF-8 at byte 7" in _refused(copy)


def test_references_in_a_circle_are_refused(copy: Path) -> None:
    file = copy / "conf" / "config.yaml"
    file.write_text(file.read_text() + "\nc0: ${c1}\nc1: ${c2}\nc2: x${c0}\n")
    assert "refers to itself" in _refused(copy)


def test_a_required_value_is_named(copy: Path) -> None:
    file = copy / "conf" / "method" / "nora.yaml"
    file.write_text(file.read_text().replace("xi: 0.1", "xi: ???"))
    assert "method.xi: a value is required (???), give method.xi=…" in _refused(copy)
    limits.check_folder.cache_clear()
    assert compose_config(copy / "conf", ["method.xi=0.3"])["method"]["xi"] == 0.3


def test_an_unpinned_hub_model_refuses_to_start(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, _, _ = compose_run(checkout, ["scale=paper"])
    assert spec.model.revision is None
    assert cli.main(["run", "scale=paper"]) == 2
    assert "no commit in conf/revisions.lock" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        "model.revision=${oc.env:NORA_SECRET}", "seed=${oc.env:NORA_SECRET}", "model.repo=${ oc.env : NORA_SECRET }",
        "task.name='${oc.decode:${oc.env:NORA_SECRET}}'", "model.repo=${hydra:runtime.cwd}", "model.repo=${now:%Y}",
        "model.repo=${exec.results}",
    ],
)  # fmt: skip
def test_nothing_of_the_machine_gets_into_a_run(word: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of the environment stood in the record, and in the message of a value of the wrong type."""
    monkeypatch.setenv("NORA_SECRET", "hf_SECRET")
    with pytest.raises(UserError) as caught:
        compose_run(checkout, ["scale=smoke", word, "exec.results=${oc.env:NORA_SECRET}"])
    assert "hf_SECRET" not in str(caught.value) and "read of this machine" in str(caught.value), str(caught.value)


def test_where_a_run_is_made_may_be_read_of_the_machine(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    _, settings, _ = compose_run(checkout, ["scale=smoke", "exec.results=${oc.env:SCRATCH}/results"])
    assert settings.results == "/scratch/me/results"


def test_what_is_allowed_in_a_place_is_said_once(checkout: Path) -> None:
    with pytest.raises(UserError) as error:
        compose_run(checkout, ["scale=smoke", "task=cb", "task.nun=1", "task.fil=x", "task.sourc=y"])
    said = str(error.value)
    assert said.count("allowed here") == 1 and said.count("unknown key") == 3
    assert "did you mean task.file?" in said and "did you mean task.source?" in said

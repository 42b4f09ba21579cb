"""What can be known before a run starts is refused then, in a line: no attempt is ever made of it, and none planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from nora import cli

Out = pytest.CaptureFixture[str]
TEXT = ["scale=smoke", "task=cb"]
MATH = ["scale=smoke", "task=gsm8k", "protocol=metamath", "model=llama_smoke"]
SENSE = ["scale=smoke", "task=commonsense", "protocol=llm_adapters", "model=llama_smoke"]
PICTURES = ["scale=smoke", "kind=dreambooth"]
RUNS = [
    (TEXT, ["method=nora", "method.rank=33"], "rank: given 33, required at most 32, the smaller side of q_proj"),
    (TEXT, ["method=lora", "method.rank=64"], "rank: given 64, required at most 32"),
    (SENSE, ["method=pissa", "method.rank=33"], "rank: given 33, required at most 32"),
    (PICTURES, ["method=nora", "method.rank=65"], "rank: given 65, required at most 16, the smaller side of to_"),
    (
        TEXT,
        ["method=lora", "method.init=kaimign"],
        "method.init: given kaimign, did you mean kaiming? allowed corda",
    ),
    (TEXT, ["method=lora", "method.alpha=1e300"], "method.alpha: given 1e+300"),
    (TEXT, ["method=nora", "method.xi=1e300"], "method.xi: given 1e+300"),
    (TEXT, ["method=prefix", "method.num_virtual_tokens=5000"], "required fewer than the model's 1024 positions"),
    (TEXT, ["model.targets=[q_porj]"], "model.targets: given q_porj, did you mean q_proj? opt_smoke has q_proj"),
    (TEXT, ["model.targets=[]"], "model.targets: given []"),
    (TEXT, ["model.tokenizer=nowhere"], "model.tokenizer: given nowhere, no folder lies there"),
    (TEXT, ["model.tokenizer=../../etc"], "model.tokenizer: given ../../etc, no "),
    (TEXT, ["model=opt_mini", "model.repo=nowhere"], "model.repo: given nowhere, no folder lies there"),
    (TEXT, ["model=opt_mini", "model.repo=/etc"], "model.repo: given /etc, no model lies there"),
    (TEXT, ["model.max_length=1"], "model.max_length: given 1, required at least 3"),
    (MATH, ["model.max_length=9"], "model.max_length: given 9, required at least 10 (8 of the answer)"),
    (["kind=deployment"], ["adapter.rank=33"], "adapter.rank: given 33, required at most 32"),
    (TEXT, ["model.bos_token_id=99999"], "vocabulary has 1024 entries"),
    (TEXT, ["model.architecture={model_type: nope}"], "given model_type 'nope'"),
    (TEXT, ["model.architecture._attn_implementation_internal=x"], "architecture._attn_implementation_internal: given"),
    (TEXT, ["model.architecture.hiden_size=8"], "did you mean hidden_size?"),
    (TEXT, ["model.architecture={model_type: qwen3, auto_map: {a: b.c}}"], "model.architecture.auto_map: given"),
    (PICTURES, ["model.architecture.unet._class_name=X"], "model.architecture.unet._class_name: given 'X', no size"),
    (PICTURES, ["model.architecture.scheduler={a: 1}"], "model.architecture.scheduler: given"),
    (TEXT, ["task.name=mycb"], "task.name: given mycb, did you mean cb? allowed boolq, cb"),
    (TEXT, ["task.suite=nothing"], "task.suite: given nothing, allowed instruct, superglue"),
    (TEXT, ["task.num_dev=100000"], "task.num_dev: 100001 rows are needed, data/cb has 250"),
    (SENSE, ["task.num_train=1000000"], "task.num_train: 1000008 rows are needed"),
    (MATH, ["task.num_train=1000000"], "task.num_train: 1000000 rows are needed"),
    (MATH, ["task.num_dev=1000000"], "task.num_dev: 1000000 rows are needed"),
]


@pytest.mark.parametrize(("base", "words", "said"), RUNS, ids=[" ".join(words) for _, words, _ in RUNS])
@pytest.mark.parametrize("multirun", [False, True])
def test_no_attempt_is_made(
    base: list[str], words: list[str], said: str, multirun: bool, tmp_path: Path, capsys: Out
) -> None:
    given = [*base, *words, f"exec.results={tmp_path}", "exec.device=cpu", "exec.progress=false"]
    assert cli.main(["run", *(["-m"] if multirun else []), *given]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1, err
    assert not list(tmp_path.rglob("attempts"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table2", "method=lora,pissa", "method.rank=4000"], "rank: given 4000, required at most"),
        (["table2", "method=lora", "method.init=kaimign"], "method.init: given kaimign, did you mean kaiming? allowed"),
        (["table2", "task.num_dev=5000"], "task.num_dev: 5001 rows are needed"),
        (["table2", "scale=small", "task.num_dev=5000"], "task.num_dev: 5001 rows are needed, data/small/"),
        (["table4", "scale=small", "task.num_train=5000"], "5120 rows are needed, data/small/commonsense has 1728"),
        (["table9", "scale=small", "task.num_train=900"], "900 rows are needed, data/small/gsm8k has 800"),
        (["table4", "model.targets=[nothing]"], "model.targets: given nothing"),
    ],
)
@pytest.mark.parametrize("verb", [["plan"], ["launch"], ["launch", "--dry-run"], ["retry"], ["launch", "--canary"]])
def test_nor_planned(verb: list[str], words: list[str], said: str, tmp_path: Path, capsys: Out) -> None:
    assert cli.main([*verb, *words, f"exec.results={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1, err
    assert not list(tmp_path.rglob("attempts"))


def test_what_fits_exactly_is_run(tmp_path: Path) -> None:
    """The bound is the smaller side itself."""
    given = [*TEXT, "method=lora", "method.rank=32", "protocol.epochs=1", "model.targets=[self_attn.q_proj,fc1]"]
    assert cli.main(["run", *given, f"exec.results={tmp_path}", "exec.device=cpu", "exec.progress=false"]) == 0

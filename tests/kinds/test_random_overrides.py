"""Thousands of seeded random override lists: what is typed is planned, checked or refused in one line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nora import cli, kinds
from nora.config.spec import run_id, spec_dict
from nora.errors import UserError
from nora.kinds import compose_run

GROUPS = {
    "scale": ["mini", "smoke", "paper"],
    "kind": ["finetune", "factorize", "deployment", "dreambooth"],
    "task": ["cb", "sst2", "squad", "wsc", "commonsense", "gsm8k", "dog", "record"],
    "method": ["lora", "nora", "nora_plus", "pissa", "olora", "prefix", "lora_p"],
    "model": ["opt_smoke", "opt_mini", "llama_smoke", "gemma_mini", "sd_mini", "sd_smoke", "llama_7b"],
    "protocol": ["mezo", "llm_adapters", "metamath", "dreambooth", "llm_adapters_modern", "factorize"],
    "problem": ["symmetric_op", "asymmetric_ep", "rates_sym_up"],
    "start": ["nystrom", "small", "altgd"],
    "solver": ["gd", "scaled_gd", "altgd"],
    "exec": ["local", "slurm"],
}
KEYS = [
    "seed", "method.rank", "method.alpha", "method.xi", "method.side", "method.init", "method.dropout",
    "method.damping", "method.num_virtual_tokens", "method.name", "protocol.lr", "protocol.batch_size",
    "protocol.epochs", "protocol.steps", "protocol.betas", "protocol.name", "protocol.version", "task.num_train",
    "task.num_dev", "task.num_test", "task.name", "task.suite", "task.source", "task.folder", "task.files",
    "task.num_images", "model.repo", "model.files", "model.targets", "model.tokenizer", "model.architecture",
    "model.max_length", "model.weights", "model.source", "model.bos_token_id", "model.dtype", "model.family",
    "measure", "problem.m", "problem.rank", "start.xi", "solver.eta", "adapter.rank", "adapter.init",
    "exec.threads", "exec.device", "exec.results", "exec.processes", "exec.profile", "nothing", "method.a.b",
    "seed.a", "hydra.job", "", "a b", "ü",
]  # fmt: skip
VALUES = [
    "0", "1", "-1", "7", "33", "100000", "1e-3", "1e300", "-1e300", "1e999", "nan", "inf", "0.5", "null", "true",
    "false", "", "''", '"', "[]", "[1,2]", "[[]]", "{}", "{a: 1}", "{model_type: opt}", "{model_type: 7}",
    "{a:{b:{c:1}}}", "???", "${seed}", "${x.y}", "${oc.env:HOME}", "${", "$", "\\", "a,b", "range(1,3)", "nora",
    "cb", "lora", "A", "asset", "hub", "config", "random", "slice", "/etc", "/dev/null", "../..", "/nowhere", "~",
    ".", "[q_proj]", "[nothing]", "[7]", "99999999999999999999", "0x10", "1_000", "kaiming", "[zero_shot]",
    "\u202e", "a" * 300,
]  # fmt: skip


def random_words(draw: random.Random) -> list[str]:
    """Up to three choices of groups and up to four values: mostly such as somebody might type."""
    words = [f"{g}={draw.choice(GROUPS[g])}" for g in draw.sample(sorted(GROUPS), draw.randint(0, 3))]
    for _ in range(draw.randint(0, 4)):
        prefix = draw.choice(["", "", "", "", "+", "++", "~"])
        words.append(f"{prefix}{draw.choice(KEYS)}={draw.choice(VALUES)}")
    draw.shuffle(words)
    return words


def outcome(words: list[str], checkout: Path) -> str:
    """What becomes of a run of these words before it begins: "right" or "refused"; any other exception is a fault."""
    try:
        spec, _, _ = compose_run(checkout, words)
        assert run_id(spec) == run_id(spec_dict(spec)) and kinds.title(spec)
        kinds.check_ready(spec)
        kinds.check_inputs(spec, checkout)
        kinds.of(spec).cost(spec)
    except UserError as error:
        assert str(error) and "\n" not in str(error), error
        return "refused"
    return "right"


def check(seeds: range, checkout: Path) -> dict[str, int]:
    """Counts of outcomes over override lists by number."""
    counts = {"right": 0, "refused": 0}
    for seed in seeds:
        words = random_words(random.Random(seed))
        try:
            counts[outcome(words, checkout)] += 1
        except Exception as error:
            raise AssertionError(f"list {seed}: {words}: {type(error).__name__}: {error}") from error
    return counts


def test_two_hundred_lists(checkout: Path) -> None:
    counts = check(range(200), checkout)
    assert counts["right"] >= 10 and counts["refused"] >= 10, "both happen"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("part", range(4))
def test_three_thousand_lists(part: int, checkout: Path) -> None:
    check(range(200 + 700 * part, 200 + 700 * (part + 1)), checkout)


def test_plans_of_random_words(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line, at a table."""
    draw = random.Random(7)
    for _ in range(40):
        words = [word for word in random_words(draw) if "exec" not in word and word[:1] not in "-"]
        code = cli.main(["plan", "table2", *words, f"exec.results={tmp_path}"])
        out, err = capsys.readouterr()
        assert code in (0, 2) and "Traceback" not in out + err, (words, err)
        assert code == 0 or err.count("\n") == 1, (words, err)

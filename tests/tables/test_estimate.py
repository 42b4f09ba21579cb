"""The cost model against figures worked out by hand: FLOPs, tokens and bytes that are ten times off show here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nora import cli, kinds
from nora.kinds.parts.cost import Cost, Work, training_cost

GIB = 2**30


def test_a_billion_tokens_of_opt_1_3b() -> None:
    """4 · 1.316e9 FLOP a trained token, half that a scored one, at 0.2 · 989 TFLOP/s; 30 s to start."""
    cost = training_cost("opt_1.3b", "float32", "fp32", trained=1e9, scored=5e8, kept=0, source="s")
    flops = 4 * 1.316e9 * 1e9 + 2 * 1.316e9 * 5e8
    assert cost.hours == pytest.approx((flops / (0.2 * 989e12) + 30) / 3600, rel=1e-9)
    assert cost.hours == pytest.approx(9.26, rel=0.01)
    assert cost.memory_gib == pytest.approx(1.316e9 * 4 / GIB + 1, rel=1e-9)


def test_activations_and_the_casts_of_float32_weights_are_counted() -> None:
    wide = training_cost("llama_7b", "float32", "fp32", trained=0, scored=0, kept=1000, source="s")
    half = training_cost("llama2_7b", "bfloat16", "bf16", trained=0, scored=0, kept=1000, source="s")
    cast = training_cost("llama_7b", "float32", "bf16", trained=0, scored=0, kept=1000, source="s")
    assert wide.memory_gib is not None and half.memory_gib is not None and cast.memory_gib is not None
    assert wide.memory_gib - 1 == pytest.approx((6.738e9 * 4 + 1000 * 4096 * 32 * 75) / GIB)
    assert half.memory_gib - 1 == pytest.approx((6.738e9 * 2 + 1000 * 4096 * 32 * 47) / GIB)
    assert cast.memory_gib - 1 == pytest.approx((6.738e9 * 6 + 1000 * 4096 * 32 * 47) / GIB)


def test_a_base_that_is_not_in_the_table_has_no_estimate() -> None:
    assert training_cost("opt_mini", "float32", "fp32", trained=1, scored=1, kept=1, source="s") == Cost(
        work=Work(1, 1)
    )


@pytest.mark.parametrize(
    ("words", "tokens", "other", "gib"),
    [
        # 1,000 rows of 2 candidates over 5 epochs and 500 dev rows after each, 1,000 test rows: 35 tokens a candidate.
        (["task=sst2", "method=lora", "protocol.batch_size=8"], 35 * 2 * (1000 * 5 + (500 * 5 + 872) / 2), 0, (8, 12)),
        # 170,000 rows of about 120 tokens over 3 epochs; decoding 22,000 answers, 32 at a time, takes over an hour.
        (
            ["model=llama_7b", "task=commonsense", "protocol=llm_adapters", "method=nora"],
            170_000 * 3 * 120, 3600, (13, 60),
        ),
    ],
)  # fmt: skip
def test_the_papers_runs_lie_where_an_h100_puts_them(
    words: list[str], tokens: float, other: float, gib: tuple[float, float], checkout: Path
) -> None:
    """Within a factor of two of 4N FLOP a token at 198 TFLOP/s, tokens counted by hand."""
    spec, _, _ = kinds.compose_run(checkout, ["scale=paper", *words])
    cost = kinds.of(spec).cost(spec)
    parameters = 6.738e9 if "model=llama_7b" in words else 1.316e9
    expected = 4 * parameters * tokens / (0.2 * 989e12) + other
    assert cost.hours is not None and expected / 2 < cost.hours * 3600 - 30 < expected * 2
    assert cost.memory_gib is not None and gib[0] < cost.memory_gib < gib[1]


def test_the_plan_says_tokens_flop_bytes_and_seconds(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LLaMA-7B, worked out by hand from the tokens the plan itself prints."""
    assert cli.main(["plan", "table4", "scale=paper", "seed=0", "method=lora", "--json"]) == 0
    cell = next(c for c in json.loads(capsys.readouterr().out)["table4"] if "model=llama_7b" in c["overrides"])
    found = cell["predicted"]
    assert (cell["device"], found["card"], found["mfu"]) == ("cuda", "H100", 0.2)
    assert found["flop"] == pytest.approx(6.738e9 * (4 * found["trained_tokens"] + 2 * found["scored_tokens"]))
    steps = found["decoded_bytes"] / (2 * 6.738e9)  # of 22,000 answers, 32 at a time
    assert 22_000 / 32 < steps < 32 * 23_000 / 32
    assert found["seconds"] == pytest.approx(found["flop"] / (0.2 * 989e12) + 0.03 * steps + 30)


def test_four_times_the_training_takes_four_times_as_long(checkout: Path) -> None:
    words = ["scale=paper", "task=sst2", "method=lora", "task.num_dev=1", "task.num_test=1"]
    four = ["task.num_train=2000", "protocol.epochs=10"]
    seconds = []
    for more in ([], four):
        spec = kinds.compose_run(checkout, [*words, "task.num_train=1000", "protocol.epochs=5", *more])[0]
        seconds.append((kinds.of(spec).cost(spec).hours or 0.0) * 3600 - 30)
    assert seconds[1] == pytest.approx(4 * seconds[0], rel=0.01)

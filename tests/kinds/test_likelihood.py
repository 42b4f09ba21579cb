"""The likelihood of the listed answers: against one sequence at a time; refused where a task lists none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nora import cli
from nora.kinds.parts.rows import read_lines
from nora.store.record import read_record
from nora.tasks.instruct import commonsense
from nora.training.scoring import by_likelihood

Out = pytest.CaptureFixture[str]


def test_candidates_are_those_that_the_question_lists(checkout: Path) -> None:
    counts = {}
    for name, answers in commonsense.SETS.items():
        for row in read_lines(checkout / "data" / "commonsense" / f"{name}.test.jsonl"):
            example = commonsense.choices(commonsense.testing(row, name))
            given = row["instruction"].rsplit("Answer format: ", 1)[1].split("/")
            assert [text.rsplit(" ", 1)[1] for text in example.candidates] == given
            assert example.candidates[example.gold] == row["output"] and set(given) <= set(answers.answers)
            counts.setdefault(name, set()).add(len(given))
    assert counts["boolq"] == {2} and counts["social_i_qa"] == {3} and counts["hellaswag"] == {4}


def test_it_is_the_mean_log_probability_of_each_answer(checkout: Path) -> None:
    folder = checkout / "assets" / "llama_mini"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = [
        commonsense.testing(row, name)
        for name in ("boolq", "arc_easy")
        for row in read_lines(checkout / "data" / "commonsense" / f"{name}.test.jsonl")[:5]
    ]
    questions = [(row.set, commonsense.choices(row)) for row in rows]
    found = by_likelihood(model, questions, tokenizer, pad_id=0, max_length=1024)
    right: dict[str, list[bool]] = {"boolq": [], "arc_easy": []}
    for row in rows:
        example, means = commonsense.choices(row), []
        for text in example.candidates:
            ids = torch.tensor([tokenizer(row.question.lstrip() + text)["input_ids"]])
            start = len(tokenizer(row.question.lstrip().rstrip(" "))["input_ids"])
            with torch.no_grad():
                log_p = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            tokens = log_p.gather(1, ids[0, 1:, None])[start - 1 :]
            means.append(float(tokens.mean()))
        right[row.set].append(means.index(max(means)) == example.gold)
    assert found["sets"] == {name: sum(hits) / 5 for name, hits in right.items()}
    assert found["mean_accuracy"] == pytest.approx(sum(found["sets"].values()) / 2)


def test_a_run_has_it_after_training_and_of_the_base(tmp_path: Path, capsys: Out) -> None:
    words = ["scale=smoke", "method=nora", "model=llama_smoke", "exec.progress=false", f"exec.results={tmp_path}"]
    own = ["task=commonsense", "protocol=llm_adapters", "measure=[zero_shot,likelihood]"]
    assert cli.main(["run", *words, *own]) == 0
    (path,) = tmp_path.glob("runs/finetune/*/record.json")
    metrics = read_record(path).metrics
    for part in ("test", "zero_shot"):
        assert set(metrics[part]["likelihood"]["sets"]) == set(metrics["test"]["sets"])
    capsys.readouterr()
    assert cli.main(["run", *words, "task=gsm8k", "protocol=metamath", "measure=[likelihood]"]) == 2
    assert "its questions list no answers" in capsys.readouterr().err

"""A finished run's merged model answers as the run did, whatever its start; the harness script around it."""

from __future__ import annotations

import gzip
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from nora import cli, tasks
from nora.errors import UserError
from nora.kinds import FinetuneSpec, compose_run
from nora.kinds.instruct import InstructProtocol
from nora.kinds.parts.bases import load_base, write_merged
from nora.kinds.parts.rows import load_instruct_rows
from nora.store.record import Record
from nora.store.runs import Store
from nora.training.generation import Decoding, answer
from nora.verbs.machine import load_program

Run = Callable[..., tuple[Record, bool]]
WORDS = ("protocol=llm_adapters_modern", "model=llama_smoke", "task.num_test=1")


@pytest.mark.parametrize("method", ["nora", "pissa"])
def test_the_merged_model_answers_as_the_run(method: str, run: Run, checkout: Path, tmp_path: Path) -> None:
    record, _ = run(*WORDS, f"method={method}", "exec.keep_adapter=true", task="commonsense", store=tmp_path / "s")
    store = Store(tmp_path / "s")
    words = ["export", f"exec.results={store.root}", "--adapter", record.id, "--merged", "--out", str(tmp_path / "out")]
    folder = tmp_path / "out" / f"{record.id}-merged"
    assert cli.main([*words, "--dry-run"]) == 0 and not folder.exists()
    assert cli.main(words) == 0
    _a_full_disk_leaves_what_stood_there(words, folder)
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.to_dict()["library_name"] == "transformers" and f"nora repeat {record.id}" in card.text
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    spec, _, _ = compose_run(checkout, ["scale=smoke", "task=commonsense", *WORDS, f"method={method}"])
    assert isinstance(spec, FinetuneSpec) and isinstance(spec.protocol, InstructProtocol)
    rows = load_instruct_rows(spec.task, tasks.load("instruct", "commonsense"), checkout, seed=spec.seed)
    decoding = Decoding(beams=1, max_new_tokens=spec.protocol.max_new_tokens, max_length=spec.model.max_length)
    questions = [row.question for row in rows.test]
    given = answer(model, questions, tokenizer, decoding, pad_id=0)
    untrained = answer(load_base(spec.model, checkout, model.device).model, questions, tokenizer, decoding, pad_id=0)
    path = store.run_dir("finetune", record.id) / record.result["files"]["predictions"]["name"]
    said = [json.loads(line)["text"] for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert given == said != untrained


def _a_full_disk_leaves_what_stood_there(words: list[str], folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def save(model: Any, at: Path) -> None:
        at.mkdir()
        (at / "config.json").touch()
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nora.kinds.parts.bases.save_merged", save)
        assert cli.main(words) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [*folder.parent.iterdir()] == [folder]


def test_an_adapter_that_was_not_kept_is_named(run: Run, checkout: Path, tmp_path: Path) -> None:
    record, _ = run(*WORDS, "method=lora", task="commonsense", store=tmp_path)
    with pytest.raises(UserError, match="exec.keep_adapter=true"):
        write_merged(record, Store(tmp_path), checkout, tmp_path / "merged")
    assert cli.main(["export", f"exec.results={tmp_path}", "--merged"]) == 2


def _script(checkout: Path) -> Any:
    return load_program(checkout / "scripts" / "lm_eval_check.py")


def test_without_the_harness_it_says_so(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    with pytest.raises(UserError, match="lm_eval is not installed here"):
        _script(checkout).check("0" * 16, ["boolq"], [f"exec.results={tmp_path}"])


def test_what_the_harness_is_given(run: Run, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for lm_eval that loads the folder it is given, as the real one's "hf" model does."""

    def simple_evaluate(*, model: str, model_args: dict[str, str], tasks: list[str]) -> dict[str, Any]:
        loaded = AutoModelForCausalLM.from_pretrained(model_args["pretrained"])
        assert model == "hf" and model_args["dtype"] == "float32" and loaded.num_parameters() > 0
        return {"results": {task: {"alias": task, "acc,none": 0.5, "acc_stderr,none": "N/A"} for task in tasks}}

    stand_in = types.ModuleType("lm_eval")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("lm_eval", None)
    stand_in.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", stand_in)
    record, _ = run(*WORDS, "method=lora", "exec.keep_adapter=true", task="commonsense", store=tmp_path)
    script = _script(checkout)
    assert script.check(record.id, ["boolq", "piqa"], [f"exec.results={tmp_path}"]) == [
        "boolq acc,none: 0.5000",
        "piqa acc,none: 0.5000",
    ]
    with pytest.raises(UserError, match="no record of it"):
        script.check("0" * 16, ["boolq"], [f"exec.results={tmp_path}"])

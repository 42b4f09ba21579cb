"""`nora doctor TARGET… scale=paper` on the twins: green, and red by name for each fault that is put back."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import transformers

from hub_twins.contents import narrow
from hub_twins.rehearsal import Fetched, offline
from nora import cli, kinds, tasks
from nora.kinds.parts.cost import Fit
from nora.training import batches

Out = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
_quiet = pytest.mark.filterwarnings("ignore")  # what datasets says of a cache it was not asked about


@pytest.fixture
def here(fetched: Fetched, monkeypatch: Patch, tmp_path: Path) -> Path:
    """A site of its own with what was fetched, as a process without a network sees it."""
    site = tmp_path / "site"
    shutil.copytree(fetched.site, site, symlinks=True)
    constants, hf = huggingface_hub.constants, fetched.folder / "hf"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hf / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hf / "datasets")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    narrow(monkeypatch.setattr)
    monkeypatch.chdir(site)
    return site


def _said(capsys: Out, *words: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and verdict and line by what was looked at."""
    code = cli.main(["doctor", *words, "scale=paper", "exec.results=fresh", "--json"])
    return code, {f["what"]: (f["verdict"], f["said"]) for f in json.loads(capsys.readouterr().out)}


def _red(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {what: said for what, (verdict, said) in found.items() if verdict == "bad"}


def test_everything_that_the_paper_reads_is_looked_at_and_green(fetched: Fetched) -> None:
    done = offline(fetched.folder, "doctor", "all", "scale=paper", "exec.results=fresh", "--json")
    found = {f["what"]: f for f in json.loads(done.stdout)}
    assert done.returncode == 0 and not [f for f in found.values() if f["verdict"] == "bad"], done.stdout
    for model in ("opt_1.3b", "llama_7b", "llama2_7b", "gemma_7b", "sd14"):
        assert f"files of {model}" in found and f"tokenizer of {model}" in found
    few_shot = [what for what in found if what.startswith("rows of") and what.endswith("opt_1.3b")]
    assert len(few_shot) == 8 and all(
        "80 encoded" in found[w]["said"] or "64 encoded" in found[w]["said"] for w in few_shot
    )
    assert "1.jpeg, 2.jpeg, 3.jpeg, 6.jpeg" in found["pictures of cat_toy"]["said"]
    assert {"encoder dino_vits16", "encoder dinov2_base", "encoder clip_vitb32"} <= found.keys()
    math = found["rows of gsm8k for gemma_7b, cut-off 512, loss on the answer"]
    assert math["verdict"] == "note" and "answers lost 1 (metamath 1)" in math["said"]
    assert "batches in parts of 16" in found["memory of table9"]["said"]
    assert found["hours of table2"]["said"].endswith("(1520 of 1520 cells known)")


@_quiet
def test_fault_1_a_prompt_that_reaches_the_cut_off_stops_the_run(here: Path, monkeypatch: Patch, capsys: Out) -> None:
    whole = batches.encode_text

    def refuse(row: Any, tokenizer: Any, *, cutoff: int, **more: Any) -> Any:
        if len(tokenizer(row.prompt)["input_ids"]) >= cutoff:
            raise ValueError(f"the prompt alone reaches the cut-off of {cutoff} tokens")
        return whole(row, tokenizer, cutoff=cutoff, **more)

    monkeypatch.setattr(batches, "encode_text", refuse)
    code, found = _said(capsys, "table9")
    assert code == 1
    assert _red(found) == {
        "rows of gsm8k for gemma_7b": "ValueError: the prompt alone reaches the cut-off of 512 tokens"
    }


@_quiet
def test_fault_2_a_tokenizer_whose_package_is_missing(here: Path, monkeypatch: Patch, capsys: Out) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    code, found = _said(capsys, "ablation")
    red = _red(found)
    assert code == 1 and red.pop("tokenizer of llama_7b") == (
        "tokenizer.model needs sentencepiece, which is not installed; pip install 'nora-lora[hf]'"
    )
    assert set(red) == {"rows of commonsense for llama_7b"}, "nothing else stops, and nothing is encoded"


@_quiet
def test_fault_3_a_picture_that_the_set_does_not_have(here: Path, capsys: Out) -> None:
    path = here / "conf" / "task" / "cat_toy.yaml"
    path.write_text(path.read_text().replace("6.jpeg", "5.jpeg"))
    code, found = _said(capsys, "fig7")
    assert code == 1
    assert _red(found) == {
        "pictures of cat_toy": "task.images: 5.jpeg not in diffusers/cat-toy-example, which has "
        "1.jpeg, 2.jpeg, 3.jpeg, 6.jpeg"
    }


@_quiet
def test_fault_5_a_batch_that_is_not_divided_does_not_fit(here: Path, monkeypatch: Patch, capsys: Out) -> None:
    def whole(spec: Any, device_gib: float = 80.0) -> Fit:
        cost = kinds.of(spec).cost(spec)
        return Fit(None, cost.memory_gib, cost.memory_source, (cost.memory_gib or 0) < device_gib)

    monkeypatch.setattr(kinds, "fit", whole)
    code, found = _said(capsys, "table9")
    assert code == 1
    assert _red(found) == {"memory of table9": "up to 401 of 80 GiB a run; 25 runs do not fit"}


@_quiet
def test_what_is_not_fetched_is_named_with_the_page_of_its_licence(here: Path, capsys: Out) -> None:
    (here / "conf" / "revisions.lock").write_text("{}\n")
    code, found = _said(capsys, "table9")
    assert code == 1
    assert "accept its licence at https://huggingface.co/google/gemma-7b" in _red(found)["gemma_7b"]


@_quiet
def test_a_file_that_is_not_what_it_was_and_labels_that_collide(here: Path, monkeypatch: Patch, capsys: Out) -> None:
    lock = json.loads((here / "conf" / "revisions.lock").read_text())
    lock["models"]["google/gemma-7b"]["files"]["config.json"] = "0" * 64
    (here / "conf" / "revisions.lock").write_text(json.dumps(lock))
    _, found = _said(capsys, "table9")
    assert "config.json: has SHA-256" in _red(found)["files of gemma_7b"]

    class OneToken:
        """Answers every text with one id more than its prompt: all candidates are alike."""

        bos_token_id, eos_token_id = 2, 2

        def __len__(self) -> int:
            return 3

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [2] * (2 + text.count("\n") + text.endswith(("Yes", "No", "Maybe")))}

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *given, **more: OneToken())
    code, found = _said(capsys, "table2", "task=boolq", "method=lora")
    assert code == 1 and tasks.load("superglue", "boolq").LOSS == "classification"
    assert "label tokens collide in 80" in _red(found)["rows of boolq for opt_1.3b"]

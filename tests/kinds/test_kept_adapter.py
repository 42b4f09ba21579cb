"""``exec.keep_adapter=true``: what `nora run` leaves is read by stock PEFT as the model that was scored."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import PeftModel, get_peft_model

from hub_twins.server import Hub, serve
from nora import cli, tasks
from nora.kinds import FinetuneSpec, compose_run
from nora.kinds.parts import kept
from nora.kinds.parts.bases import load_base, lora_config, write_merged
from nora.kinds.parts.rows import few_shot_rows
from nora.store.record import Record
from nora.store.runs import Store
from nora.training.scoring import Assessor, Split

METHODS = ("lora", "lora_p", "pissa", "olora", "nora", "nora_plus", "prefix")
CPU = torch.device("cpu")


def _kept(words: list[str], checkout: Path, store: Path) -> tuple[FinetuneSpec, Record, Path]:
    """What `nora run` has left: the spec, the record and the folder of the adapter."""
    words = ["scale=smoke", *words, "exec.device=cpu", "exec.progress=false"]
    assert cli.main(["run", *words, "exec.keep_adapter=true", f"exec.results={store}"]) == 0
    spec, _, _ = compose_run(checkout, words)
    assert isinstance(spec, FinetuneSpec)
    (path,) = store.glob("runs/finetune/*/record.json")
    record = Store(store).read("finetune", path.parent.name)
    assert record is not None
    return spec, record, path.parent / kept.FOLDER


def _predictions(folder: Path, record: Record) -> list[dict[str, Any]]:
    file = folder.parent / record.result["files"]["predictions"]["name"]
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_stock_peft_scores_as_the_run_did(method: str, checkout: Path, tmp_path: Path) -> None:
    spec, record, folder = _kept(["task=cb", "protocol.lr=0.03", f"method={method}"], checkout, tmp_path / "store")
    assert record.result["files"].keys() == {"predictions", "adapter"}, "what exec keeps is not in the result"
    base = load_base(spec.model, checkout, CPU)
    task = tasks.load("superglue", "cb")
    test = Split.encode(
        [task.build(row) for row in few_shot_rows(spec.task, task, checkout, seed=0).test], base.tokenizer,
        max_length=spec.model.max_length, bos=spec.model.bos_token_id,
    )  # fmt: skip
    assessor = Assessor(task, base.tokenizer, base.pad_id, True, spec.model.max_length)

    def scores(model: Any) -> torch.Tensor:
        return torch.tensor([row["scores"] for row in assessor.measure(model.eval(), test)[1]])

    untouched = scores(base.model)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base.model), str(folder))
    said = torch.tensor([row["scores"] for row in _predictions(folder, record)])
    torch.testing.assert_close(scores(loaded), said, rtol=0, atol=2e-5)
    assert (untouched - said).abs().max() > 1e-3, "the adapter does something"

    config = json.loads((folder / "adapter_config.json").read_text())
    base_name = spec.model.repo or spec.model.name
    assert config["base_model_name_or_path"] == base_name and config["revision"] is None
    assert config["inference_mode"] is True and str(tmp_path) not in json.dumps(config)
    assert config.get("init_lora_weights", True) is True, "nothing is repeated at loading"
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict()["library_name"] == "peft" and f"nora show {record.id}" in card.text
    assert ("position_ids" in card.text) == (method == "prefix")
    assert ("plain LoRA of the untouched one" in card.text) == (method in ("pissa", "olora"))


@pytest.mark.parametrize(
    "words", [["method=nora"], ["method=pissa"], ["method=pissa", "model.dtype=bfloat16"]], ids=" ".join
)
def test_an_instruct_run_whose_adapter_was_merged_is_left_unmerged(
    words: list[str], checkout: Path, tmp_path: Path
) -> None:
    """Beside the model that is made again from the record's own tensors, start and all."""
    words = ["task=commonsense", "model=llama_smoke", "protocol=llm_adapters", "task.num_test=1", *words]
    spec, record, folder = _kept(words, checkout, tmp_path / "store")
    assert spec.protocol.merge  # type: ignore[union-attr]
    write_merged(record, Store(tmp_path / "store"), checkout, tmp_path / "merged")
    base = load_base(spec.model, checkout, CPU)
    merged = PeftModel.from_pretrained(copy.deepcopy(base.model), str(folder)).merge_and_unload().state_dict()
    expected = type(base.model).from_pretrained(tmp_path / "merged", dtype=base.model.dtype).state_dict()
    untouched = base.model.state_dict()
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(expected[name], untouched[name]) for name in expected)
    assert ("repeats the start" in (folder / "README.md").read_text()) == (spec.model.dtype == "bfloat16")


def test_a_base_of_the_hub_is_named_with_its_commit(checkout: Path) -> None:
    spec, _, _ = compose_run(checkout, ["scale=paper", "task=cb", f"model.revision={'a' * 40}"])
    assert isinstance(spec, FinetuneSpec)
    base = load_base(compose_run(checkout, ["scale=smoke", "task=cb"])[0].model, checkout, CPU)  # type: ignore[union-attr]
    model = get_peft_model(base.model, lora_config(spec.method, spec.model.targets))
    keeper = kept.KeptAdapter(spec, model, spec.method)
    files = keeper.files()
    config = json.loads(files["adapter/adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("facebook/opt-1.3b", "a" * 40)
    assert ModelCard(files["adapter/README.md"].decode()).data.to_dict()["base_model"] == "facebook/opt-1.3b"
    assert keeper.files() == files, "the same bytes each time"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of our own that takes commits, and this process's client turned to it, by plain LFS; no token yet."""
    with serve(Hub()) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield found


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's, of its own client
def test_an_adapter_is_exported_and_pushed_when_asked(
    hub: Hub, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    _, record, kept_folder = _kept(["task=cb", "method=nora"], checkout, store)
    words = ["export", f"exec.results={store}", "--adapter", record.id[:8], "--out", str(out)]
    assert cli.main(words) == 0 and hub.asked == [], "nothing is pushed unless asked"
    folder = out / record.id
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / name).read_bytes() == (kept_folder / name).read_bytes()
    card = ModelCard.load(folder / "README.md")
    score = next(iter(v for v in record.metrics["test"].values() if isinstance(v, float)))
    for part in (f"{score:.4g}", "Init proof: nystrom passed", f"nora repeat {record.id}", "| method.xi |"):
        assert part in card.text, part

    def pushed(*more: str) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main([*words, "--push", "somebody/mine", *more])
        said = capsys.readouterr()
        return code, said.err + said.out.replace(str(out), "")

    code, said = pushed()
    assert code == 2 and said.startswith("nora: --push: no token") and said.count("nora:") == 1 and hub.asked == []
    monkeypatch.setenv("HF_TOKEN", "refused")
    code, said = pushed()
    assert code == 2 and "refuses the token for somebody/mine (401)" in said and hub.models == {}
    monkeypatch.setenv("HF_TOKEN", "accepted")
    code, said = pushed("--dry-run")
    assert code == 0 and "3 files would be pushed" in said and hub.models == {}
    code, said = pushed()
    assert code == 0 and f"{hub.endpoint}/somebody/mine/commit/" in said, said
    assert hub.models["somebody/mine"].files == {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, said = pushed()
    assert code == 2 and "http://127.0.0.1:9 is out of reach" in said and said.count("nora:") == 1
    assert cli.main([*words, "--push", "no name"]) == 2 and cli.main(["export", "--push", "somebody/mine"]) == 2


def test_with_hf_xet_installed_the_large_file_goes_by_xet(
    hub: Hub, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own library talks to a content store that believes everything: what reaches it is of the file's size, and the
    commit names the file by its hash. A Hub without that store is one line, with where the files lie."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_TOKEN", "accepted")
    store, out = tmp_path / "store", tmp_path / "out"
    _, record, kept_folder = _kept(["task=cb", "method=nora"], checkout, store)
    words = ["export", f"exec.results={store}", "--adapter", record.id, "--out", str(out), "--push", "somebody/mine"]
    assert cli.main(words) == 2
    err = capsys.readouterr().err  # of the store's own thread too, whose client hung up
    (said,) = [line for line in err.splitlines() if line.startswith("nora:")]
    assert "xet-write-token" in said and "HF_HUB_DISABLE_XET=1 does without" in said
    assert said.endswith(f"{out / record.id} has the files")

    weights = (kept_folder / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    brought: list[bytes] = []

    def content_store(request: Any, method: str, path: str) -> bool:
        if "/xet-write-token/" in path:
            request.send_json({"accessToken": "t", "exp": 4102444800, "casUrl": f"{hub.endpoint}/cas"})
        elif not path.startswith("/cas/"):
            return False
        elif "/xorbs/" in path:
            brought.append(request.body)
            request.send_json({"was_inserted": True})
        elif "/shards" in path:
            hub.uploaded[digest] = weights  # put together from its chunks by the real one
            request.send_json({"type": "result", "result": 1})
        else:
            request.refuse(404, "NotFound")
        return True

    hub.faults.append(content_store)
    assert cli.main(words) == 0
    assert f"{hub.endpoint}/somebody/mine/commit/" in capsys.readouterr().out
    assert 0.8 * len(weights) < sum(map(len, brought)) < 1.1 * len(weights) + 4096
    assert hub.models["somebody/mine"].files["adapter_model.safetensors"] == weights


def test_a_run_that_kept_no_adapter_says_how_one_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"exec.results={tmp_path / 'store'}"
    assert cli.main(["run", "scale=smoke", "task=cb", place, "exec.progress=false"]) == 0
    identity = capsys.readouterr().out.split()[0]
    assert cli.main(["export", place, "--adapter", identity, "--out", str(tmp_path / "out")]) == 2
    assert "kept no adapter: exec.keep_adapter=true" in capsys.readouterr().err and not (tmp_path / "out").exists()

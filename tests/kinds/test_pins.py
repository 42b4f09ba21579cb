"""Nothing that a run reads is missing from its id: weights, tokenizers and rows, shipped, typed or from the Hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from nora import tasks
from nora.config.pins import Pins, assets_manifest
from nora.config.spec import run_id
from nora.errors import RunFailed, UserError
from nora.files import sha256_file
from nora.kinds import FewShotSpec, compose_run
from nora.kinds.parts import bases
from nora.kinds.parts.rows import load_rows, rows_hash

ROOT = Path(__file__).resolve().parents[2]
OWN = ["scale=mini", "task=cb", "model.source=asset", "model.weights=pretrained"]


def _spec(words: list[str], checkout: Path = ROOT) -> FewShotSpec:
    spec = compose_run(checkout, words)[0]
    assert isinstance(spec, FewShotSpec)
    return spec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder of one's own."""
    return Path(shutil.copytree(ROOT / "assets" / "opt_mini", tmp_path / "mine"))


def _shard(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"part")


def _settings(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", '{"mine": 1,', 1))


def _weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


@pytest.mark.parametrize("change", [_shard, _settings, _weights])
def test_a_folder_given_by_override_is_in_the_id_with_every_file(change: Callable[[Path], None], model: Path) -> None:
    words = [*OWN, f"model.repo={model}"]
    before = _spec(words)
    named = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert before.model.files is not None and set(before.model.files) == named
    change(model)
    assert run_id(_spec(words)) != run_id(before)


def test_what_changed_after_the_plan_is_refused_when_it_is_read(model: Path) -> None:
    spec = _spec([*OWN, f"model.repo={model}"])
    bases.load_base(spec.model, ROOT, torch.device("cpu"))
    _settings(model)
    with pytest.raises(RunFailed, match="tokenizer_config.json: has SHA-256"):
        bases.load_base(spec.model, ROOT, torch.device("cpu"))
    shutil.copy(ROOT / "assets" / "opt_mini" / "tokenizer_config.json", model)
    (model / "chat_template.jinja").write_text("hello")
    with pytest.raises(RunFailed, match="chat_template.jinja would be loaded and no hash names it"):
        bases.load_base(spec.model, ROOT, torch.device("cpu"))


def test_a_shipped_base_keeps_its_hashes_and_its_other_files_are_checked_by_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads(assets_manifest(ROOT)) == json.loads((ROOT / "assets" / "MANIFEST.json").read_text())
    spec = _spec(["scale=mini", "task=cb"])
    assert "tokenizer_config.json" not in (spec.model.files or {})
    copy = tmp_path / "assets"
    shutil.copytree(ROOT / "assets" / "opt_mini", copy / "opt_mini")
    shutil.copy(ROOT / "assets" / "MANIFEST.json", copy)
    bases.load_base(spec.model, tmp_path, torch.device("cpu"))
    _settings(copy / "opt_mini")
    with pytest.raises(RunFailed, match="tokenizer_config.json: has SHA-256"):
        bases.load_base(spec.model, tmp_path, torch.device("cpu"))
    random = _spec(["scale=smoke", "task=cb"])
    with pytest.raises(RunFailed, match="tokenizer_config.json: has SHA-256"):
        bases.load_base(random.model, tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["task.files={cb/train.jsonl: '0'}"], "task.files: given {'cb/train.jsonl': '0'}, the files here have"),
        (["model.files={config.json: '0'}"], "the files here have {'config.json': '"),
        (["model=opt_1.3b", "model.revision=main"], "model.revision: given main, required a commit"),
        (["task.source=hub", "task.revision=main"], "task.revision: given main, required a commit"),
        (["model=opt_mini", f"model.revision={'c' * 40}"], "model.revision: given ccc"),
        (["task.source=slice", "task.revision=abc"], "task.revision: given abc, allowed with task.source=hub alone"),
        (["kind=dreambooth", "task.source=hub", "task.revision=main"], "task.revision: given main, required a commit"),
        (["model.repo=/nowhere"], "model.repo: given /nowhere, no folder lies there"),
        (["model.repo=" + "a" * 300], "no folder lies there"),
        (["task.name=" + "a" * 300], "task.name: given"),
    ],
)
def test_a_typed_value_that_would_be_replaced_is_refused(words: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        _spec(["scale=mini", "task=cb", *words])
    assert line in str(caught.value)


def test_a_typed_commit_is_used(tmp_path: Path) -> None:
    assert _spec(["model=opt_1.3b", "task=cb", f"model.revision={'c' * 40}"]).model.revision == "c" * 40


def test_rows_of_ones_own_are_hashed(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mycb"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("{}\n")
    (folder / "validation.jsonl").write_text("{}\n")
    task = {"name": "mycb", "source": "slice"}
    with pytest.raises(UserError) as caught:
        Pins(tmp_path).apply({"task": task, "model": {}, "kind": "finetune"})
    (line,) = re.findall(r"'task\.files=(\{.*\})'", str(caught.value))
    typed = OverridesParser.create().parse_override(f"task.files={line}").value()
    hashes = {f"mycb/{p.name}": sha256_file(p) for p in sorted(folder.iterdir())}
    assert typed == hashes
    plain = Pins(tmp_path).apply({"task": {**task, "files": typed}, "model": {}, "kind": "finetune"})
    assert plain["task"]["files"] == hashes


def _flipped(text: str, key: str) -> str:
    return text.replace(key, chr(ord(key[0]) ^ 1) + key[1:], 1)


MANIFEST = (ROOT / "data" / "MANIFEST.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "data/cb/train.jsonl has no entry in data/MANIFEST.json; what is shipped: `git checkout"),
        ("{}", "data/cb/train.jsonl has no entry in data/MANIFEST.json; what is shipped: `git checkout"),
        ("[]", "given a value of type list, required an object"),
        (_flipped(MANIFEST, "cb/train.jsonl"), "data/cb/train.jsonl has no entry"),
        (_flipped(MANIFEST, "cb/validation.jsonl"), "data/cb/validation.jsonl has no entry"),
        (json.dumps({**json.loads(MANIFEST), "cb/train.jsonl": {"rows": 3}}), "required an object with its sha256"),
        (json.dumps({**json.loads(MANIFEST), "cb/train.jsonl": 7}), "cb/train.jsonl: given 7, required an object"),
        (MANIFEST.replace("{", '{"cb/train.jsonl": {},', 1), "the key 'cb/train.jsonl' twice"),
        (_flipped(MANIFEST, "dreambooth/cat/00.jpg"), "data/dreambooth/cat/00.jpg has no entry"),
    ],
)
def test_rows_and_pictures_without_a_pin_are_refused(text: str | None, line: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("cb", "dreambooth"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    if text is not None:
        (tmp_path / "data" / "MANIFEST.json").write_text(text)
    with pytest.raises(UserError) as caught:
        pins = Pins(tmp_path)
        pins.apply({"task": {"name": "cb", "source": "slice"}, "model": {}, "kind": "finetune"})
        picture = {"task": {"folder": "cat", "source": "slice"}, "model": {}, "kind": "dreambooth", "protocol": {}}
        pins.apply(picture)
    assert line in str(caught.value)


def test_swapped_labels_are_refused(tmp_path: Path) -> None:
    spec = _spec(["scale=mini", "task=cb"])
    shutil.copytree(ROOT / "data" / "cb", tmp_path / "data" / "cb")
    path = tmp_path / "data" / "cb" / "train.jsonl"
    path.write_text(path.read_text().replace('"label": 0', '"label": 1', 1).replace('"label":0', '"label":1', 1))
    with pytest.raises(RunFailed, match="train.jsonl: has SHA-256"):
        load_rows(spec.task, tasks.load("superglue", "cb"), tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"tasks": []}', '{"models": {"a": "b"}}', '{"tasks": null}', "\\xff", "1e999"])
def test_a_lock_of_another_type_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "revisions.lock").write_text(text)
    with pytest.raises(UserError, match="revisions.lock: "):
        Pins(tmp_path)


def test_rows_of_the_hub_are_compared_with_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offline cache of a data set with two revisions can serve the other one's rows, as many as expected."""
    task = tasks.load("superglue", "cb")
    rows = {"train": [{"premise": str(i)} for i in range(250)], "validation": [{"premise": str(i)} for i in range(56)]}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, *, split, revision: rows[split])
    (tmp_path / "conf").mkdir()
    entry = {"commit": "d" * 40, "files": {f"cb/{split}": rows_hash(rows[split]) for split in rows}}
    (tmp_path / "conf" / "revisions.lock").write_text(json.dumps({"tasks": {"cb": entry}}))
    plain = Pins(tmp_path).apply({"task": {"name": "cb", "source": "hub"}, "model": {}, "kind": "finetune"})
    assert plain["task"]["files"] == entry["files"]
    spec = replace(_spec(["task=cb"]).task, source="hub", revision="d" * 40, files=plain["task"]["files"])
    assert load_rows(spec, task, tmp_path)[0] == rows["train"]
    rows["train"][7] = {"premise": "of another revision"}
    with pytest.raises(RunFailed, match="cb/train: the rows have SHA-256 .*, conf/revisions.lock says"):
        load_rows(spec, task, tmp_path)


def test_files_of_a_fetched_model_are_compared_with_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(shutil.copytree(ROOT / "assets" / "opt_mini", tmp_path / "snapshot"))
    monkeypatch.setattr(bases, "fetched_folder", lambda *given: model)
    files = {"model.safetensors": sha256_file(model / "model.safetensors")}
    spec = replace(_spec(["task=cb", "model=opt_1.3b"]).model, revision="e" * 40, files=files)
    bases.load_base(spec, ROOT, torch.device("cpu"))
    _weights(model)
    with pytest.raises(RunFailed, match="model.safetensors: has SHA-256"):
        bases.load_base(spec, ROOT, torch.device("cpu"))

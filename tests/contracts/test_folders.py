"""The folders are the registry: what one names, the other has; what is shipped is what its manifest says."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from nora import starts as registry
from nora import tasks
from nora.adapters import inits
from nora.factorization import starts
from nora.kinds.parts.rows import read_lines
from nora.tables.cell import names
from nora.tables.panels import Panels
from nora.tables.subjects import Deployments, Subjects
from nora.tables.target import Costs, has_scale, load_target

ROOT = Path(__file__).resolve().parents[2]
ALIASES = {"sd_paper", "auto"}  # of sd14; of whatever model.repo says (test_own_model)
MODELS = sorted({p.stem for p in (ROOT / "conf" / "model").glob("*.yaml")} - ALIASES)
SETS = sorted(str(p.parent.relative_to(ROOT / "data")) for p in (ROOT / "data").glob("**/NOTICE"))
FOLDERS = sorted({p.parent for p in (ROOT / "data").glob("**/*.jsonl*")} | {ROOT / "data" / "dreambooth"})


def _conf(group: str) -> dict[str, dict[str, object]]:
    return {p.stem: yaml.safe_load(p.read_text()) for p in sorted((ROOT / "conf" / group).glob("*.yaml"))}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_every_task_has_a_config_and_every_config_a_task() -> None:
    shipped = {
        stem: c for stem, c in _conf("task").items() if c["source"] != "file"
    }  # the others are of one's own rows
    configured = {(str(c["suite"]), str(c["name"])) for c in shipped.values() if c["suite"] != "dreambooth"}
    assert configured == {(suite, name) for suite in {s for s, _ in configured} for name in tasks.names(suite)}
    assert all(c["name"] == stem for stem, c in shipped.items())
    for suite, name in configured:
        module = tasks.load(suite, name)
        if suite == "instruct":
            assert module.METRIC == "mean_accuracy" and module.SETS and callable(module.extract)
            assert callable(module.training) and callable(module.testing)
            continue
        assert module.LOSS in ("classification", "option_lm") and module.METRIC and module.FIELDS and module.SOURCE


def test_every_method_has_its_init() -> None:
    for stem, config in _conf("method").items():
        assert config["name"] == stem
        if "init" in config and config.get("adapter", "lora") == "lora":
            assert config["init"] in inits.names()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_targets_it_names(name: str) -> None:
    """Real weights where shipped, the tiny twin from its config, or a twin of the Hub model's class."""
    from nora.kinds.parts.bases import random_model

    config = _conf("model")[name]
    assert config["name"] == name
    if config["family"] == "stable_diffusion":
        _check_unet(name, config)
        return
    shipped = ROOT / str(config.get("repo")) / "config.json"
    twin = config.get("architecture") or json.loads(shipped.read_text())
    true_shape = twin["max_position_embeddings"]  # type: ignore[index]
    smoke = _conf("model").get(
        f"{config['family']}_smoke", {"architecture": {"num_hidden_layers": 2, "vocab_size": 1024, "pad_token_id": 0}}
    )["architecture"]
    small = {k: v for k, v in smoke.items() if k != "model_type"}  # type: ignore[attr-defined]
    twin = {**twin, **small}  # type: ignore[dict-item]
    assert isinstance(twin, dict) and twin["model_type"].removesuffix("_text") == config["family"]
    model = random_model(twin, seed=0)
    modules = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if hasattr(m, "weight")}
    assert set(config["targets"]) <= modules  # type: ignore[arg-type]
    assert config["max_length"] <= true_shape or config["source"] == "hub"  # type: ignore[operator]


def _check_unet(name: str, config: dict[str, object]) -> None:
    """The shipped UNet's config, or the architecture's, on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel

    shape = config.get("architecture") or {"unet": json.loads((ROOT / f"assets/{name}/unet/config.json").read_text())}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(shape["unet"])  # type: ignore[index]
    modules = [n for n, m in unet.named_modules() if hasattr(m, "weight")]
    for target in config["targets"]:  # type: ignore[attr-defined]
        assert any(n.endswith(f".{target}") for n in modules)


@pytest.mark.parametrize("name", MODELS)
def test_files_of_a_model_have_the_hashes_of_its_yaml(name: str) -> None:
    config = _conf("model")[name]
    files = config.get("files", {})
    assert isinstance(files, dict) and (files or config["source"] == "hub")
    if config["source"] == "package":  # not shipped; its hash is compared when it is read
        return
    for file, digest in files.items():
        assert _sha256(ROOT / str(config.get("repo") or config["tokenizer"]) / file) == digest


def test_the_manifest_describes_exactly_the_shipped_rows() -> None:
    manifest = json.loads((ROOT / "data" / "MANIFEST.json").read_text())
    data = ROOT / "data"
    shipped = [
        *data.glob("*/*.jsonl*"),
        *data.glob("small/*/*.jsonl.gz"),
        *(ROOT / "data" / "dreambooth").glob("*/*.jpg"),
    ]
    assert set(manifest) == {str(p.relative_to(ROOT / "data")) for p in shipped}
    for name, entry in manifest.items():
        path = ROOT / "data" / name
        assert _sha256(path) == entry["sha256"], name
        if path.suffix == ".jpg":
            assert path.stat().st_size == entry["bytes"] and entry["licence"] and "github.com" in entry["source"]
            continue
        assert len(read_lines(path)) == entry["rows"]


def test_every_folder_of_rows_has_its_notice() -> None:
    assert [str(folder.relative_to(ROOT / "data")) for folder in FOLDERS] == SETS


@pytest.mark.parametrize("name", SETS)
def test_each_set_says_where_its_rows_come_from(name: str) -> None:
    notice = (ROOT / "data" / name / "NOTICE").read_text(encoding="utf-8")
    folders = sorted(p.name for p in (ROOT / "data" / name).iterdir() if p.is_dir())
    files = [f"{folder}/*.jpg" for folder in folders] or sorted(p.name for p in (ROOT / "data" / name).glob("*.jsonl*"))
    for part in (*(f"{file} <-" for file in files), "licence", "github.com"):
        assert part in notice


@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in names(ROOT) for scale in _conf("scale") if has_scale(ROOT, name, scale)],
)
def test_every_table_expands_at_every_scale_and_names_methods_and_tasks_there_are(name: str, scale: str) -> None:
    table = load_target(ROOT, name, [f"scale={scale}"])
    if isinstance(table, Panels):  # a factorisation has no scale
        for panel in table.file.panels.values():
            for curve in panel.curves:
                assert {curve.problem} <= set(_conf("problem")) and {curve.solver} <= set(_conf("solver"))
                assert curve.start in starts.names() and curve.start in _conf("start")
        return
    if isinstance(table, Costs):
        assert set(table.targets) == {other for other in names(ROOT) if has_scale(ROOT, other, scale)} - {name}
        return
    if isinstance(table, Deployments):
        assert "nystrom" in table.inits
        return
    if isinstance(table, Subjects):
        chosen = {table.file.choice(row)[0] for row in table.methods}
        assert chosen <= set(_conf("method")) and table.subject in _conf("task")
        assert table.file.layout in ("training_pictures",) or table.cells({})
        return
    methods = {*table.file.rows, *table.file.below_rule}
    assert methods <= set(table.file.search.grid) and table.file.search.first in methods
    assert methods <= set(_conf("method")) and set(table.file.columns) <= set(_conf(table.file.axis))


def test_no_config_names_code_to_run() -> None:
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        assert "_target_" not in path.read_text(encoding="utf-8"), path


def test_no_tracked_file_is_large_and_the_tree_is_small() -> None:
    sizes = {path: path.stat().st_size for path in _tracked() if path.is_file()}
    assert len(sizes) > 100
    assert [p for p, size in sizes.items() if size > 10_000_000] == []
    assert sum(sizes.values()) <= 60_000_000


def test_readmes_list_of_methods_is_made_from_the_folders() -> None:
    import list_methods

    text = list_methods.README.read_text(encoding="utf-8")
    assert list_methods.written(text) == text, "python tools/list_methods.py"


def test_readmes_table_of_faults_is_what_the_counts_say() -> None:
    import list_faults

    text = list_faults.README.read_text(encoding="utf-8")
    assert list_faults.BEGIN in text and list_faults.written(text) == text, "python tools/list_faults.py"
    for axis in ("inits", "variants", "optimizers"):
        assert all(f"- `{name}`: " in text for name in registry.names(axis))

"""The run id is a hash of what can change a number, and of nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from nora.config.spec import run_id, spec_dict, versionless_id
from nora.kinds import compose_run


def _id(checkout: Path, *overrides: str) -> str:
    return run_id(compose_run(checkout, overrides)[0])


def test_the_id_is_sha256_of_sorted_compact_json_without_nulls(checkout: Path) -> None:
    spec, _, _ = compose_run(checkout, ["method=lora", "seed=3"])
    plain = spec_dict(spec)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert "null" not in text
    assert run_id(spec) == hashlib.sha256(text.encode()).hexdigest()[:16] == run_id(plain)


@pytest.mark.parametrize(
    "one, other",
    [
        (["protocol.lr=1e-4"], ["protocol.lr=0.0001"]),
        (["method.xi=0.10"], ["method.xi=0.1"]),
        (["method.alpha=16"], ["method.alpha=16.0"]),
        (["protocol.lr=3.0e-3"], []),
        (["task=cb", "seed=1"], ["seed=1", "task=cb"]),
        (["method.damping=null"], []),
        (["protocol.max_steps=null"], []),
        (["exec.threads=7", "exec.wandb=offline", "exec.results=/elsewhere", "exec.micro_batch_size=1"], []),
    ],
)
def test_one_value_one_id(checkout: Path, one: list[str], other: list[str]) -> None:
    assert _id(checkout, *one) == _id(checkout, *other)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "method.xi=0.2",
        "method.side=B",
        "method=nora_plus",
        "task=cb",
        "task.num_train=100",
        "protocol.lr=1e-4",
        "protocol.version=2",
        "protocol.share_prompt=false",
        "measure=[zero_shot]",
        "model.dtype=bfloat16",
        "scale=smoke",
    ],
)
def test_whatever_can_change_a_number_changes_the_id(checkout: Path, override: str) -> None:
    assert _id(checkout, override) != _id(checkout)


def test_scale_only_chooses_values(checkout: Path) -> None:
    """Smoke's values written out at mini scale are the same run."""
    smoke, _, _ = compose_run(checkout, ["scale=smoke", "task=cb"])
    written = ["task=cb", "model=opt_smoke", "protocol.lr=1e-3", "protocol.batch_size=4", "protocol.epochs=2"]
    written += [f"task.{key}=8" for key in ("num_train", "num_dev", "num_test")]
    assert run_id(smoke) == _id(checkout, *written)
    assert "scale" not in spec_dict(smoke) and "exec" not in spec_dict(smoke)


def test_weights_and_rows_are_in_the_spec_by_their_hashes(checkout: Path) -> None:
    plain = spec_dict(compose_run(checkout, ["task=cb"])[0])
    folder = checkout / "assets" / "opt_mini"
    for name, digest in plain["model"]["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert set(plain["task"]["files"]) == {"cb/train.jsonl", "cb/validation.jsonl"}
    for name, digest in plain["task"]["files"].items():
        assert hashlib.sha256((checkout / "data" / name).read_bytes()).hexdigest() == digest


def test_editing_a_default_gives_a_new_id_and_moving_nothing_does_not(checkout: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout / "conf", copy / "conf")
    (copy / "data").mkdir()
    shutil.copy(checkout / "data" / "MANIFEST.json", copy / "data")
    assert _id(copy) == _id(checkout)
    file = copy / "conf" / "method" / "nora.yaml"
    file.write_text(file.read_text().replace("xi: 0.1", "xi: 0.3"))
    assert _id(copy) != _id(checkout)
    assert _id(copy, "method.xi=0.1") == _id(checkout)
    rows = copy / "data" / "MANIFEST.json"
    before = _id(copy)
    manifest = json.loads(rows.read_text())
    manifest["sst2/train.jsonl"]["sha256"] = "0" * 64
    rows.write_text(json.dumps(manifest))
    assert _id(copy) != before, "other rows, another run"


def test_the_versionless_id_ignores_the_protocols_version_alone(checkout: Path) -> None:
    one, two, lr = (
        spec_dict(compose_run(checkout, [o])[0])
        for o in ("protocol.version=1", "protocol.version=2", "protocol.lr=1.0")
    )
    assert versionless_id(one) == versionless_id(two) != versionless_id(lr)
    assert run_id(one) != run_id(two)


def test_an_experiment_is_its_choices_and_values_under_one_name(checkout: Path) -> None:
    written = _id(checkout, "task=cb", "method=nora", "method.side=B", "protocol.epochs=2")
    assert _id(checkout, "experiment=nora_side_b") == written
    assert _id(checkout, "experiment=nora_side_b", "protocol.epochs=3", "task=sst2") == _id(
        checkout, "task=sst2", "method=nora", "method.side=B", "protocol.epochs=3"
    )

"""kind=deployment: a real run of each kind of start, and the table made of its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nora.config.spec import spec_dict
from nora.errors import UserError
from nora.execution.execute import execute
from nora.kinds import DeploymentSpec, compose_run
from nora.reporting.collation import build_artefact
from nora.reporting.document import to_csv, to_markdown
from nora.store.record import Record
from nora.store.runs import Store
from nora.tables.target import load_target

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT, diffusers and torch warn of the traps that are tried here


def _run(checkout: Path, results: Path, init: str) -> Record:
    overrides = ["kind=deployment", f"adapter.init={init}", "protocol.steps=3", f"exec.results={results}"]
    spec, settings, _ = compose_run(checkout, overrides)
    assert isinstance(spec, DeploymentSpec)
    record, made = execute(spec, settings, checkout=checkout, store=Store(results))
    assert made and record.result["proof"]["passed"]
    return record


@pytest.mark.slow
def test_nora_deploys_like_lora(checkout: Path, tmp_path: Path) -> None:
    record = _run(checkout, tmp_path, "nystrom")
    for host in ("text", "diffusion"):
        metrics = record.metrics[host]
        assert metrics["losses"][1] < metrics["losses"][0] and metrics["trained_change"] > 1e-2
        assert metrics["start_difference"] == 0.0 and not metrics["moves_base"]
        for label in ("stock", "portable"):
            assert metrics[label] == {"alone": 0.0, "beside": 0.0, "off": 0.0}
        assert metrics["merge_float32"]["weight"] < 1e-6 < metrics["merge_bfloat16"]["weight"]
    assert record.metrics["diffusion"]["without_alpha"] > 1e-3, "the trap is real"


@pytest.mark.slow
def test_a_random_decomposition_is_lost_and_our_saving_keeps_it(checkout: Path, tmp_path: Path) -> None:
    record = _run(checkout, tmp_path, "pissa_niter_4")
    text, diffusion = record.metrics["text"], record.metrics["diffusion"]
    assert text["stock"]["alone"] > 1e-2 and text["stock"]["off"] > 1e-2
    assert "error" in diffusion["stock"]
    for metrics in (text, diffusion):
        assert (
            max(metrics["portable"].values()) < 1e-4 and metrics["bytes"]["portable"] > 1.8 * metrics["bytes"]["stock"]
        )


@pytest.mark.parametrize("variant", ["dora", "rslora", "lora_fa"])
def test_a_variant_is_what_is_deployed(checkout: Path, tmp_path: Path, variant: str) -> None:
    from nora.adapters import lora_layers
    from nora.kinds.parts.deploy import train_adapter
    from nora.kinds.parts.hosts import DiffusionHost

    words = ["kind=deployment", "adapter.init=kaiming", f"adapter.variant={variant}", "protocol.steps=3"]
    spec, _, _ = compose_run(checkout, words)
    assert isinstance(spec, DeploymentSpec) and spec_dict(spec)["adapter"]["variant"] == variant
    host = DiffusionHost(spec)
    trained, plain = (train_adapter(host, spec, "kaiming", name) for name in (variant, None))
    assert trained.start_difference == 0.0
    layers, ordinary = lora_layers(trained.model), lora_layers(plain.model)
    assert all(layer.module.use_dora["default"] == (variant == "dora") for layer in layers)
    for layer, other in zip(layers, ordinary, strict=True):
        assert layer.scaling / other.scaling == pytest.approx(8**0.5 if variant == "rslora" else 1.0)
    first = {layer.name: next(v for k, v in trained.start.items() if f"{layer.name}.lora_A" in k) for layer in layers}
    assert {bool((layer.A != first[layer.name]).any()) for layer in layers} == {variant != "lora_fa"}


def _record(spec: Any, identity: str, alone: float, error: bool) -> Record:
    good = {"alone": 0.0, "beside": 0.0, "off": 0.0}
    merge = {"weight": 0.0, "output": 0.0}
    host = {
        "losses": [1.0, 0.5], "bytes": {"stock": 1000, "portable": 2000}, "portable": good, "without_alpha": 0.5,
        "stock": {"error": "no"} if error else {**good, "alone": alone},
        "merge_float32": merge, "merge_bfloat16": merge,
    }  # fmt: skip
    return Record(
        identity, {"spec": spec_dict(spec), "status": "done", "metrics": {"text": host, "diffusion": host}}, {}
    )


def test_the_table_says_what_loads_and_what_is_missing(checkout: Path) -> None:
    target = load_target(checkout, "deployment", ["scale=mini"])
    assert len({c.id for c in target.cells({})}) == 34
    target = load_target(checkout, "deployment", ["seed=0"])
    chosen = {c.row: c for c in target.cells({})}
    records = {
        str(c.id): _record(c.spec, str(c.id), alone, error)
        for c, alone, error in (
            (chosen["nystrom"], 0.0, False),
            (chosen["pissa"], 0.3, False),
            (chosen["olora"], 0.0, True),
        )
    }
    document = build_artefact(target, records)
    text = to_markdown(document)  # type: ignore[arg-type]
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "14 of 17 runs are not there: 14 missing" in text
    main = text.split("## Merge")[0]
    assert "missing" in rows["DoRA"] and "missing" in rows["LoRA-FA"]
    assert main.count("nothing") == 2 and main.count("conversion to rank 2r") == 4 and main.count("does not load") == 6
    assert "missing" in rows["Gaussian"]
    assert to_csv(document).count(chosen["nystrom"].id) == 28  # type: ignore[arg-type, union-attr]
    # No worst of fewer seeds than the table says.
    both = to_markdown(build_artefact(load_target(checkout, "deployment"), records))  # type: ignore[arg-type]
    assert "nothing" not in both and both.split("## Merge")[0].count("missing (1/2)") == 2 * 3 * 8


def test_a_wrong_start_or_seed_is_one_clear_line(checkout: Path) -> None:
    with pytest.raises(UserError, match="adapter.init: given 'nystroem'.*did you mean nystrom"):
        compose_run(checkout, ["kind=deployment", "adapter.init=nystroem"])
    with pytest.raises(UserError, match="adapter.init=pissa: given with deployment, whose rows say it: kaiming, "):
        load_target(checkout, "deployment", ["adapter.init=pissa"])
    with pytest.raises(UserError, match="seed: given '7', this table has 0, 1"):
        load_target(checkout, "deployment", ["seed=7"])


def test_the_spec_pins_the_base(checkout: Path) -> None:
    spec, _, _ = compose_run(checkout, ["kind=deployment"])
    assert spec_dict(spec)["model"]["files"]["model.safetensors"]


def test_the_bound_on_the_rank_is_the_unets(checkout: Path) -> None:
    from nora.kinds import deployment
    from nora.kinds.parts.hosts import _SHAPE

    assert deployment._NARROWEST == min(*_SHAPE["block_out_channels"], _SHAPE["cross_attention_dim"])

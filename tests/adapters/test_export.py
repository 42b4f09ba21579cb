"""Saved adapters in stock PEFT on the untouched base; what a plain wheel needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

import nora
from nora.adapters import factors_at_start, lora_layers, nystrom_init_, save_adapter, save_diffusers_lora
from twins import same_bytes, snapshot, tiny_opt, with_lora

IDS = torch.arange(3, 24)[None]


def _trained(init: Any, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """An adapter after a few real steps, and its factors before them."""
    model = with_lora(tiny_opt(), init=True if init == "nystrom" else init, alpha=12, **options)
    if init == "nystrom":
        assert nystrom_init_(model, xi=0.1).passed
    start = factors_at_start(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model, start


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern:UserWarning")  # PEFT's own conversion
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", [True, "nystrom", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"])
def test_stock_peft_loads_it_on_the_untouched_base(init: Any, rslora: bool, tmp_path: Path) -> None:
    model, start = _trained(init, use_rslora=rslora, rank_pattern={"v_proj": 6}, alpha_pattern={"v_proj": 5})
    wanted = model(input_ids=IDS).logits.detach()
    assert (wanted - tiny_opt()(input_ids=IDS).logits).abs().max() > 0.1, "training changed the output"
    save_adapter(model, tmp_path / "saved", at_start=start)
    base = tiny_opt()
    untouched = snapshot(base)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "saved")).eval()
    moved = str(init).startswith(("pissa", "olora"))
    torch.testing.assert_close(loaded(input_ids=IDS).logits, wanted, rtol=0, atol=2e-5 if moved else 0)
    assert {layer.rank for layer in lora_layers(loaded)} == ({8, 12} if moved else {4, 6})
    assert same_bytes(untouched, snapshot(loaded.unload()))


def test_stock_saving_of_pissa_niter_is_the_trap() -> None:
    """Why ``save_adapter`` exists: PEFT repeats the random decomposition at loading and gets another base."""
    import tempfile

    model, _ = _trained("pissa_niter_4")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        torch.manual_seed(123)
        loaded = PeftModel.from_pretrained(tiny_opt(), folder).eval()
    assert (loaded(input_ids=IDS).logits - model(input_ids=IDS).logits).abs().max() > 1e-3


def test_a_moved_base_needs_the_factors_at_the_start(tmp_path: Path) -> None:
    model, start = _trained("pissa")
    with pytest.raises(ValueError, match="take factors_at_start"):
        save_adapter(model, tmp_path)
    start.popitem()
    with pytest.raises(ValueError, match="given other tensors"):
        save_adapter(model, tmp_path, at_start=start)
    with pytest.raises(ValueError, match="adapter_name: given 'x'"):
        save_adapter(model, tmp_path, adapter_name="x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("init", ["nystrom", "olora"])
def test_stock_diffusers_reads_alpha(init: str, tmp_path: Path) -> None:
    """α = 3 r, and other ones by pattern: without the file's metadata diffusers would take α = r."""
    import diffusers

    from diffusion_twins import TARGETS, tiny_unet
    from nora.kinds.parts.pipelines import make_scheduler

    unet = tiny_unet()
    config: Any = LoraConfig(r=4, lora_alpha=12, alpha_pattern={"to_v": 5}, target_modules=TARGETS)
    config.init_lora_weights = True if init == "nystrom" else init
    unet.add_adapter(config)
    if init == "nystrom":
        assert nystrom_init_(unet, xi=0.1).passed
    start = factors_at_start(unet)
    draw = torch.Generator().manual_seed(0)
    for layer in lora_layers(unet):
        layer.B.data += 0.1 * torch.randn(layer.B.shape, generator=draw)
    save_diffusers_lora(unet, tmp_path, at_start=start)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=tiny_unet(), scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_lora_weights(str(tmp_path))
    sample = torch.randn(2, unet.config.in_channels, 8, 8, generator=draw)
    text = torch.randn(2, 5, unet.config.cross_attention_dim, generator=draw)
    with torch.no_grad():
        trained, loaded, base = (u(sample, 10, text).sample for u in (unet, pipeline.unet, tiny_unet()))
    torch.testing.assert_close(loaded, trained, rtol=0, atol=1e-5 if init == "olora" else 0)
    assert (trained - base).abs().max() > 0.01


def test_the_live_adapter_is_not_changed_by_saving(tmp_path: Path) -> None:
    model, start = _trained("olora")
    before, config = snapshot(model), model.peft_config["default"].to_dict()
    save_adapter(model, tmp_path, at_start=start)
    assert same_bytes(before, snapshot(model)) and model.peft_config["default"].to_dict() == config
    assert isinstance(model.peft_config["default"], LoraConfig)


def test_the_library_starts_without_the_rest(checkout: Path) -> None:
    """From a plain wheel: no Hydra, no data sets, no diffusers, nothing of ours above the floor."""
    forbidden = ["hydra", "omegaconf", "datasets", "diffusers"]
    code = (
        "import sys, nora.adapters as a; "
        "print(a.nystrom_init_.__name__, a.create_nora_plus_optimizer.__name__, a.prove_init.__name__); "
        f"bad = [m for m in {forbidden!r} if m in sys.modules]; "
        "ours = ('adapters', 'starts', 'streams'); "
        "bad += [m for m in sys.modules if m.startswith('nora.') and m.split('.')[1] not in ours]; "
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=checkout / "src")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["nystrom_init_", "create_nora_plus_optimizer", "prove_init"]


def test_a_plain_install_brings_torch_peft_and_safetensors_and_says_what_the_pipeline_takes(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    names = [re.split("[^A-Za-z-]", wanted)[0] for wanted in project["dependencies"]]
    assert names == ["torch", "peft", "safetensors"]
    assert project["version"] == nora.__version__ and project["scripts"] == {"nora": "nora.__main__:main"}
    for absent, words in (("click", []), ("hydra", ["list", "methods"])):  # click may be there for another's sake
        code = (
            f"import runpy, sys; sys.modules[{absent!r}] = None; sys.argv[1:] = {words!r}; "
            "runpy.run_module('nora', run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=checkout / "src")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert f"{absent} is not installed" in done.stderr and f"pip install '{project['name']}[all]'" in done.stderr

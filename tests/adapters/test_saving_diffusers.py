"""``save_diffusers_lora`` read back by stock diffusers: how the UNet carries the adapter × its settings × its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from diffusion_twins import TARGETS, tiny_unet
from nora.adapters import factors_at_start, nystrom_init_, save_adapter, save_diffusers_lora
from nora.kinds.parts.pipelines import make_scheduler

SETTINGS: dict[str, dict[str, Any]] = {
    "factors": {},
    "patterns": {"rank_pattern": {"to_v": 6}, "alpha_pattern": {"to_v": 5}, "use_rslora": True, "lora_alpha": 4},
    "dora": {"use_dora": True},
    "convolutions": {"target_modules": ["to_q", "conv1"]},
    "biases in the adapter": {"lora_bias": True, "target_modules": ["to_out.0"]},
    "by a regular expression": {"target_modules": r".*to_[qv]"},
}
PLAIN_START_ONLY = {"dora", "convolutions", "biases in the adapter"}  # PEFT's PiSSA and OLoRA, or their conversion
CASES = [
    (setting, init)
    for setting in SETTINGS
    for init in ("nystrom", "pissa", "olora")
    if init == "nystrom" or setting not in PLAIN_START_ONLY
]
pytestmark = pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern:UserWarning")


def _output(unet: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    sample = torch.randn(2, unet.config.in_channels, 8, 8, generator=draw)
    text = torch.randn(2, 5, unet.config.cross_attention_dim, generator=draw)
    with torch.no_grad():
        output: Tensor = unet.eval()(sample, 10, text).sample
    return output


def _pipeline(text_encoder: Any = None) -> Any:
    import diffusers

    return diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=text_encoder, tokenizer=None, unet=tiny_unet(), scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _trained(carried: str, init: str, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    settings: Any = {"r": 4, "lora_alpha": 12, "target_modules": TARGETS, **options}
    config = LoraConfig(**settings, init_lora_weights=True if init == "nystrom" else init)  # type: ignore[arg-type]
    unet: Any = tiny_unet()
    if carried == "add_adapter":
        unet.add_adapter(config)
    else:
        unet = get_peft_model(unet, config)
    if init == "nystrom":
        assert nystrom_init_(unet, xi=0.1).passed
    start, draw = factors_at_start(unet), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return unet, start


@pytest.mark.parametrize("carried", ["add_adapter", "get_peft_model"])
@pytest.mark.parametrize(("setting", "init"), CASES)
def test_a_pipeline_loads_it(setting: str, carried: str, init: str, tmp_path: Path) -> None:
    unet, start = _trained(carried, init, **SETTINGS[setting])
    wanted = _output(unet)
    save_diffusers_lora(torch.compile(unet, backend="eager"), tmp_path, at_start=start)  # type: ignore[arg-type]
    pipeline = _pipeline()
    pipeline.load_lora_weights(str(tmp_path))
    bare = tiny_unet()
    base = _output(bare)
    bare.load_lora_adapter(str(tmp_path), prefix="unet", weight_name="pytorch_lora_weights.safetensors")
    size = float(wanted.abs().max())
    rounding = 16 * torch.finfo(wanted.dtype).eps * size  # OLoRA's frozen pair is folded: a rounding in every layer
    assert (wanted - base).abs().max() > 0.01
    for loaded in (pipeline.unet, bare):
        torch.testing.assert_close(_output(loaded), wanted, rtol=0, atol=0 if init == "nystrom" else rounding)


def test_a_unet_in_peft_is_a_peft_adapter_too(tmp_path: Path) -> None:
    from peft import PeftModel

    unet, _ = _trained("get_peft_model", "nystrom")
    save_adapter(unet, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_unet(), str(tmp_path))
    torch.testing.assert_close(_output(loaded), _output(unet), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"bias": "lora_only"}, {"modules_to_save": ["conv_out"]}])
def test_what_a_pipeline_refuses_is_not_written(options: dict[str, Any], tmp_path: Path) -> None:
    """It refuses diffusers' own file of such an adapter too."""
    unet, _ = _trained("add_adapter", "nystrom", target_modules=["to_out.0"], **options)
    with pytest.raises(ValueError, match="is no LoRA factor .* which load_lora_weights refuses"):
        save_diffusers_lora(unet, tmp_path / "saved")
    assert not list(tmp_path.iterdir())
    unet.save_lora_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        _pipeline().load_lora_weights(str(tmp_path))


def test_a_text_encoder(tmp_path: Path) -> None:
    config = CLIPTextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    ids = torch.arange(3, 13)[None]

    def make() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return CLIPTextModel(config).eval()

    encoder = make()
    encoder.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"]))
    assert nystrom_init_(encoder, xi=0.1).passed
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    encoder.eval()
    save_diffusers_lora(encoder, tmp_path, prefix="text_encoder")
    pipeline = _pipeline(make())
    pipeline.load_lora_weights(str(tmp_path))
    wanted, got, base = (m(input_ids=ids).last_hidden_state for m in (encoder, pipeline.text_encoder.eval(), make()))
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert (wanted - base).abs().max() > 1e-3

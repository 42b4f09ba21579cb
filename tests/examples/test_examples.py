"""The examples as a user runs them, on the shipped base and a tiny UNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from nora.verbs.machine import load_program

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, accelerate and diffusers


def _load(checkout: Path, name: str) -> Any:
    path = checkout / "examples" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    return load_program(path)


def test_hf_trainer(checkout: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    example = _load(checkout, "hf_trainer_nora")
    (tmp_path / "texts").write_text("the film was long and quiet .\nnobody in it ever agreed .\n" * 8)
    name, output = str(checkout / "assets" / "opt_mini"), str(tmp_path / "adapter")
    trainer = example.main(name, str(tmp_path / "texts"), output, steps=12, lr=5e-3)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12 and float(losses[-1]) < 0.8 * float(losses[0])
    steps = trainer.optimizer.state_dict()["param_groups"][0]["nora_plus_steps"]
    assert steps == 12, "the Trainer's steps went through the preconditioner"
    ids = torch.arange(3, 20)[None]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), output).eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits)


def test_diffusers(checkout: Path, tmp_path: Path) -> None:
    import diffusers

    example = _load(checkout, "diffusers_nora_plus")

    def unet() -> Any:
        torch.manual_seed(0)
        return diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
        )  # fmt: skip

    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    draw = torch.Generator().manual_seed(1)
    latents, noise, text = (torch.randn(s, generator=draw) for s in ((2, 4, 8, 8), (2, 4, 8, 8), (2, 5, 32)))
    time = torch.tensor([100, 700])
    trained = unet()
    losses = example.train(trained, scheduler, [(latents, noise, time, text)] * 20, str(tmp_path), lr=1e-2)
    assert losses[-1] < 0.9 * losses[0]
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet(), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_lora_weights(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(trained(latents, time, text).sample, pipeline.unet(latents, time, text).sample)

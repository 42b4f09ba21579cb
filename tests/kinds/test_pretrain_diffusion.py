"""``nora pretrain`` of a pipeline: a tiny recipe makes one that stock diffusers loads, with a card of its facts."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusion_twins import ROOT, SHAPE, noise_picture
from make_base.pictures import drawn_crop, make_pipeline, training_pictures
from make_base.scenes import Dice
from nora import cli


@pytest.fixture
def recipe() -> dict[str, Any]:
    """The shipped recipe with the smoke model's shapes, few pictures and three steps of each phase."""
    recipe: dict[str, Any] = yaml.safe_load((ROOT / "conf/pretrain/sd_mini.yaml").read_text())
    recipe |= {"num_scenes": 24, "photo_crops": 8, "resolution": 32}
    settings = recipe["settings"]
    for phase in ("vae", "denoiser", "clip"):
        settings[phase] |= {"steps": 3, "batch_size": 4}
    text = {k: v for k, v in SHAPE["text_encoder"].items() if not k.endswith("_id") and k != "vocab_size"}
    text.pop("max_position_embeddings")
    settings["architecture"] |= {"vae": SHAPE["vae"], "unet": SHAPE["unet"], "text_encoder": text}
    return recipe


def test_a_recipe_becomes_a_pipeline_with_a_card(recipe: dict[str, Any], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    assert make_pipeline("tiny", copy.deepcopy(recipe), checkout=ROOT, out=tmp_path) == 0
    facts = json.loads((tmp_path / "pretraining.json").read_text())
    for name, digest in facts["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    wanted = {"unet/config.json", "clip/model.safetensors", "clip/tokenizer.json", "model_index.json"}
    assert wanted <= set(facts["files"])
    assert facts["samples_seen"] == {"vae": 12, "denoiser": 12, "clip": 12}
    card = (tmp_path / "README.md").read_text()
    for part in ("24 drawn scenes and 8 crops", facts["training_pictures_sha256"], "CC BY 4.0", "dog6"):
        assert part in " ".join(card.split())
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (32, 32)


def test_the_subjects_are_not_among_the_photographs_it_sees(recipe: dict[str, Any]) -> None:
    pictures, files = training_pictures(recipe, ROOT)
    folders = {path.parent.name for path in files}
    subjects = {yaml.safe_load((ROOT / f"conf/task/{t}.yaml").read_text())["folder"] for t in ("dog", "duck_toy")}
    assert folders == {"dog", "cat", "monster_toy", "robot_toy"} and not folders & subjects
    assert pictures.pixels.shape == (32, 3, 32, 32) and len(pictures.captions) == 32
    again, _ = training_pictures(recipe, ROOT)
    assert torch.equal(pictures.pixels, again.pixels) and pictures.captions == again.captions


def test_a_drawn_crop_is_square_and_inside() -> None:
    dice = Dice(torch.Generator().manual_seed(0))
    for size in ((100, 60), (60, 100), (60, 60)):
        for _ in range(20):
            assert drawn_crop(noise_picture(*size), 16, dice).size == (16, 16)


def test_what_needs_a_corpus_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "opt_mini"]) == 2
    assert "--corpus FOLDER: required for opt_mini" in capsys.readouterr().err
    assert cli.main(["pretrain", "sd_mini", "--corpus", str(tmp_path)]) == 2
    assert "--corpus: sd_mini is made from drawn scenes" in capsys.readouterr().err

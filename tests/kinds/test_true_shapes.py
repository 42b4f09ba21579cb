"""``model.weights=random`` of a paper-scale base has the real repository's config, field by field."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import AutoConfig, CLIPTextConfig

ROOT = Path(__file__).parents[2]
COPIES: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "hub_configs.json").read_text())
PARTS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}


def _architecture(name: str) -> dict[str, Any]:
    shape: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())["architecture"]
    return shape


def _differences(made: Any, copy: dict[str, Any]) -> dict[str, Any]:
    return {key: (made.get(key), value) for key, value in copy.items() if made.get(key) != value}


@pytest.mark.parametrize("name", [name for name in COPIES if name != "sd14"])
def test_a_language_model_made_at_random_has_the_real_config(name: str) -> None:
    shape, copy = _architecture(name), COPIES[name]["fields"]
    fields = {key: value for key, value in shape.items() if key != "model_type"}
    made = AutoConfig.for_model(shape["model_type"], **fields).to_dict()
    # gemma: transformers keeps in hidden_act what it reads, under whichever name the file has it
    made |= {"hidden_activation": made["hidden_act"]} if "hidden_activation" in copy else {}
    assert _differences(made, copy) == {}
    assert COPIES[name]["from"]


def test_a_pipeline_made_at_random_has_the_real_configs() -> None:
    shape, copy = _architecture("sd14"), COPIES["sd14"]["fields"]
    for part, kind in PARTS.items():
        defaults = {key: given.default for key, given in inspect.signature(kind.__init__).parameters.items()}
        made = json.loads(json.dumps({**defaults, **shape[part]}, default=lambda value: None))
        assert _differences(made, copy[part]) == {}, part
    assert _differences(CLIPTextConfig(**shape["text_encoder"]).to_dict(), copy["text_encoder"]) == {}

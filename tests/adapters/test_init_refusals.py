"""Wrong input to the Nyström init: ValueError with given and required, the model left bit-identical."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from nora.adapters import initialize_, lora_layers, nystrom_init_
from twins import OneLinear, one_linear_with_lora, randomize_factors, same_bytes, snapshot, tiny_opt, with_lora


@pytest.mark.parametrize(
    "options, message",
    [
        ({"xi": 0.0}, "xi: given 0.0, required a finite number > 0"),
        ({"xi": -1.0}, "xi: given -1.0, required"),
        ({"xi": math.nan}, "xi: given nan, required"),
        ({"xi": math.inf}, "xi: given inf, required"),
        ({"xi": 0.1, "side": "C"}, "side: given 'C', required 'A' or 'B'"),
        ({"xi": 0.1, "seed": -1}, "seed: given -1, required"),
        ({"xi": 0.1, "seed": 1.5}, "seed: given 1.5, required an integer"),
        ({"xi": 0.1, "seed": 2**32}, "seed: given 4294967296, required"),
        ({"xi": 0.1, "adapter_name": "other"}, "adapter 'other': the model has no LoRA layer"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    model = with_lora(tiny_opt())
    before = snapshot(model)
    with pytest.raises(ValueError) as error:
        nystrom_init_(model, **options)
    assert message in str(error.value)
    assert same_bytes(before, snapshot(model))


def test_unknown_option_and_unknown_init() -> None:
    model = with_lora(tiny_opt())
    before = snapshot(model)
    with pytest.raises(ValueError, match="given sigma, allowed xi, side, divide_by_scaling"):
        initialize_(model, "nystrom", sigma=0.1)
    with pytest.raises(ValueError, match="given xi, allowed no options"):
        initialize_(model, "kaiming", xi=0.1)
    with pytest.raises(ValueError, match="init: given 'nystroem', required one of .*nystrom"):
        initialize_(model, "nystroem")
    assert same_bytes(before, snapshot(model))


def test_a_wrong_side_reaches_no_factor_by_the_general_door_either() -> None:
    model = with_lora(tiny_opt())
    before = snapshot(model)
    with pytest.raises(ValueError, match="side: given 'C'"):
        initialize_(model, "nystrom", side="C")
    assert same_bytes(before, snapshot(model))


def test_a_rank_above_the_weight_is_a_sketch_like_any_other() -> None:
    model = with_lora(tiny_opt(), rank=33)
    assert nystrom_init_(model, xi=0.1).passed
    assert all(layer.A.shape == (33, 32) for layer in lora_layers(model))


@pytest.mark.parametrize("started", ["default", "other"])
def test_a_merged_weight_is_not_the_pretrained_one(started: str) -> None:
    """And a start of the merged adapter itself would leave its update in the base at unmerging."""
    model = one_linear_with_lora()
    model.add_adapter("other", LoraConfig(r=4, target_modules=["proj"]))
    randomize_factors(model)
    pretrained = lora_layers(model)[0].weight.clone()
    model.merge_adapter(adapter_names=["default"])
    before = snapshot(model)
    with pytest.raises(ValueError, match="proj: given a weight with default merged into it, .*unmerge_adapter"):
        nystrom_init_(model, xi=0.1, adapter_name=started, overwrite=True)
    assert same_bytes(before, snapshot(model))
    model.unmerge_adapter()
    torch.testing.assert_close(lora_layers(model)[0].weight, pretrained)
    assert nystrom_init_(model, xi=0.1, adapter_name=started, overwrite=True).passed


def test_a_start_that_overflows_does_not_blame_the_base() -> None:
    model = with_lora(tiny_opt())
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"given xi 1e\+300, .*the factors overflow float32"):
        nystrom_init_(model, xi=1e300)
    assert same_bytes(before, snapshot(model))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_base_weight_in_the_last_layer(bad: float) -> None:
    """Checked before the first write: the layers before it are as they were."""
    model = with_lora(tiny_opt())
    lora_layers(model)[-1].module.get_base_layer().weight.data[3, 3] = bad
    before = snapshot(model)
    with pytest.raises(ValueError, match="non-finite entries"):
        nystrom_init_(model, xi=0.1)
    assert same_bytes(before, snapshot(model))


def test_a_model_without_lora() -> None:
    with pytest.raises(ValueError, match="no LoRA layer.*get_peft_model"):
        nystrom_init_(tiny_opt(), xi=0.1)


def test_a_weight_on_the_meta_device() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(8, 8))
        model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="meta device"):
        nystrom_init_(model, xi=0.1, overwrite=True)


def test_a_trained_adapter_is_kept_unless_overwritten() -> None:
    model = one_linear_with_lora()
    randomize_factors(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match="trained.*overwrite=True"):
        nystrom_init_(model, xi=0.1)
    assert same_bytes(before, snapshot(model))
    assert nystrom_init_(model, xi=0.1, overwrite=True).passed


def test_one_adapter_of_two_is_started() -> None:
    model = one_linear_with_lora()
    model.add_adapter("second", LoraConfig(r=4, target_modules=["proj"]))
    before = snapshot(model)
    assert nystrom_init_(model, xi=0.1, adapter_name="second").passed
    changed = {key for key, value in snapshot(model).items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "lora_A.second" in key} and len(changed) == 1


def test_a_transposed_weight_is_read_as_out_by_in() -> None:
    """GPT-2's Conv1D keeps [in, out]; the sketch is that of its transpose."""
    from transformers.pytorch_utils import Conv1D

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = Conv1D(12, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.proj(x)

    conv = get_peft_model(Net(), LoraConfig(r=2, target_modules=["proj"], fan_in_fan_out=True))  # type: ignore[arg-type]
    linear = one_linear_with_lora(12, 8, rank=2, alpha=8)
    assert isinstance(linear.base_model.model, OneLinear)
    lora_layers(linear)[0].module.get_base_layer().weight.data.copy_(lora_layers(conv)[0].weight)
    assert nystrom_init_(conv, xi=0.1).passed
    nystrom_init_(linear, xi=0.1)
    torch.testing.assert_close(lora_layers(conv)[0].A, lora_layers(linear)[0].A)

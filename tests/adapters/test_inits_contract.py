"""Every file of adapters/inits/ keeps the folder's contract; PEFT is the reference where it makes the factors."""

from __future__ import annotations

import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from nora import streams
from nora.adapters import initialize_, inits, lora_layers, snapshot_weights
from twins import same_bytes, snapshot, tiny_opt, with_lora

NAMES = inits.names()
RANDOM = [name for name in NAMES if not inits.load(name).MOVES_BASE]


def _factors(name: str, weight: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return inits.load(name).factors(weight, 4, scaling=2.0, generator=streams.generator(seed, "init", "x"))


def test_the_folder_holds_the_five_ways_of_the_paper_and_peft() -> None:
    assert {"kaiming", "gaussian", "nystrom", "pissa", "olora"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_attributes_and_signature(name: str) -> None:
    module = inits.load(name)
    parameters = inspect.signature(module.factors).parameters
    assert isinstance(module.MOVES_BASE, bool)
    assert list(parameters)[:4] == ["weight", "rank", "scaling", "generator"]
    assert {key: p.default for key, p in list(parameters.items())[4:]} == module.OPTIONS
    assert module.__doc__


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_shapes_and_dtype(name: str, shape: tuple[int, int]) -> None:
    A, B = _factors(name, torch.randn(shape, generator=torch.Generator().manual_seed(0)).double())
    assert A.shape == (4, shape[1]) and B.shape == (shape[0], 4)
    assert A.dtype == B.dtype == torch.float32
    assert torch.isfinite(A).all() and torch.isfinite(B).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_is_repeatable_and_leaves_the_global_generator_alone(name: str) -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    kept, state = weight.clone(), torch.get_rng_state()
    first, again = _factors(name, weight), _factors(name, weight)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert torch.equal(weight, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], _factors(name, weight, seed=1)[0]) == (name not in RANDOM)


@pytest.mark.parametrize("name", NAMES)
def test_moves_base_says_whether_peft_changes_the_frozen_weight(name: str) -> None:
    model = tiny_opt()
    before = snapshot_weights(model, {"q_proj", "v_proj"})
    layers = lora_layers(with_lora(model, init=inits.load(name).PEFT_INIT))
    moved = [not torch.equal(layer.weight, before[layer.name]) for layer in layers]
    assert moved == [inits.load(name).MOVES_BASE] * 4


@pytest.mark.parametrize("name", RANDOM)
def test_the_draw_depends_on_the_module_name_only(name: str) -> None:
    """Not on which other modules are adapted, their order, or what wraps the model."""

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    def factors(targets: list[str], wrap: bool) -> dict[str, torch.Tensor]:
        model = with_lora(tiny_opt(), target_modules=targets)
        initialize_(Wrapper(model) if wrap else model, name, seed=3)
        return {x.name: torch.cat([x.A, x.B.T], dim=1).detach() for x in lora_layers(model)}

    plain = factors(["q_proj", "v_proj"], wrap=False)
    assert set(plain) == {f"model.decoder.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"}
    assert same_bytes(plain, factors(["v_proj", "q_proj"], wrap=True))
    alone = factors(["v_proj", "k_proj"], wrap=False)
    assert all(torch.equal(plain[key], alone[key]) for key in plain if key.endswith("v_proj"))
    values = list(plain.values())
    assert all(not torch.equal(values[0], other) for other in values[1:]), "two modules share a draw"


def test_names_of_torch_compile_and_ddp_are_stripped() -> None:
    from nora.adapters.layers import canonical_name, wrapper_prefix

    bare = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    peft = get_peft_model(bare, LoraConfig(target_modules=["0"]))  # type: ignore[arg-type]
    compiled = torch.compile(nn.DataParallel(peft), backend="eager")
    assert wrapper_prefix(bare) == "" and wrapper_prefix(peft) == "base_model.model."
    assert wrapper_prefix(compiled) == "module.base_model.model."  # type: ignore[arg-type]
    for wrapped in ("module.base_model.model.0.b", "_orig_mod.module.base_model.model.0._orig_mod.b"):
        assert canonical_name(wrapped, "module.base_model.model.") == "0.b"


@pytest.mark.parametrize("name", RANDOM)
def test_initialize_touches_the_two_factors_only(name: str) -> None:
    model = with_lora(tiny_opt())
    before = snapshot(model)
    initialize_(model, name, seed=5)
    after = snapshot(model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all("lora_" in key for key in changed)

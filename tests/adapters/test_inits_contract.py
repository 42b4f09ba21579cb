"""Every file of adapters/inits/ keeps the folder's contract; PEFT is the reference where it makes the factors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from nora import starts
from nora.adapters import initialize_, inits, lora_layers
from nora.testing import check_init
from twins import same_bytes, snapshot, tiny_opt, with_lora

NAMES = [name for name in inits.names() if not starts.missing("inits", name)]  # LoftQ: test_quantised.py
RANDOM = [name for name in NAMES if not inits.load(name).MOVES_BASE]


IDS = torch.randint(3, 60, (2, 24), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": row[None], "labels": row[None]} for row in IDS]


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return getattr(model, "module", model)(**batch).loss


def test_the_folder_holds_the_five_ways_of_the_paper_and_peft() -> None:
    assert {"kaiming", "gaussian", "nystrom", "pissa", "olora"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_init_keeps_the_contract_when_it_is_run(name: str) -> None:
    check_init(inits.load(name))


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_is_another_draw(name: str) -> None:
    one, other = with_lora(tiny_opt()), with_lora(tiny_opt())
    for model, seed in ((one, 0), (other, 1)):
        initialize_(model, name, seed=seed, batches=BATCHES)
    pairs = zip(lora_layers(one), lora_layers(other), strict=True)
    alike = [torch.equal(a.A, b.A) and torch.equal(a.B, b.B) for a, b in pairs]
    assert alike == [name in ("eva", "lora_one")] * 4  # those two draw nothing


OWN = '''"""A start of one's own."""

import torch
from torch import Tensor

from nora.adapters.inits import Factors

PEFT_INIT = True
MOVES_BASE = False
OPTIONS = {"size": 0.5}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator, size: float = 0.5) -> Factors:
    """A = size everywhere, B = 0."""
    return Factors(torch.full((rank, weight.shape[1]), size), torch.zeros(weight.shape[0], rank))
'''


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("", "", None),
        ("PEFT_INIT = True\n", "", "PEFT_INIT is missing"),
        ("MOVES_BASE = False", "MOVES_BASE = 0", "MOVES_BASE must be True or False"),
        ('{"size": 0.5}', "dict(size=0.5)", "OPTIONS must be a literal"),
        ('{"size": 0.5}', "{}", "OPTIONS must be factors' own keywords"),
        ("weight: Tensor, rank: int", "rank: int, weight: Tensor", "factors must begin with weight"),
        ("torch.full((rank, ", "torch.full((rank + 1, ", "shape"),
        ("torch.full((rank, weight.shape[1]), size)", "torch.randn(rank, weight.shape[1])", "global generator"),
        (
            "torch.full((rank, weight.shape[1]), size)",
            "torch.empty(rank, weight.shape[1]).fill_(torch.nan)",
            "overflow",
        ),
        ("MOVES_BASE = False", "MOVES_BASE = True\nNAMED = 'own'", "MOVES_BASE says otherwise"),
    ],
)
def test_a_module_of_ones_own(old: str, new: str, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / f"own_{abs(hash((old, new)))}.py"
    path.write_text(OWN.replace(old, new) if old else OWN)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if message is None:
        check_init(module)
    else:
        with pytest.raises((AssertionError, ValueError, RuntimeError), match=message):
            check_init(module)


@pytest.mark.parametrize("name", RANDOM)
def test_the_draw_depends_on_the_module_name_only(name: str) -> None:
    """Not on which other modules are adapted, their order, or what wraps the model."""

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    def factors(targets: list[str], wrap: bool) -> dict[str, torch.Tensor]:
        model = with_lora(tiny_opt(), target_modules=targets)
        initialize_(Wrapper(model) if wrap else model, name, seed=3, batches=BATCHES, loss=_loss)
        return {x.name: torch.cat([x.A, x.B.T], dim=1).detach() for x in lora_layers(model)}

    plain = factors(["q_proj", "v_proj"], wrap=False)
    assert set(plain) == {f"model.decoder.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"}
    assert same_bytes(plain, factors(["v_proj", "q_proj"], wrap=True))
    alone = factors(["v_proj", "k_proj"], wrap=False)
    assert all(torch.equal(plain[key], alone[key]) for key in plain if key.endswith("v_proj"))
    values = list(plain.values())
    apart = values[1:] if name != "eva" else values[2:]  # q_proj and v_proj have the same inputs
    assert all(not torch.equal(values[0], other) for other in apart), "two modules share a draw"


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
    initialize_(model, name, seed=5, batches=BATCHES)
    after = snapshot(model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all("lora_" in key for key in changed)

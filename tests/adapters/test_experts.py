"""Adapters over bare parameters (PEFT's ``target_parameters``): a matrix, or the stacked experts of a mixture.

PEFT keeps the A of all experts in one parameter and their B in another, the experts of B in its last dimension; here
each expert is a layer of its own, with its own draw, proof and preconditioner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from nora import streams
from nora.adapters import (
    create_nora_plus_optimizer,
    fingerprint_weights,
    lora_layers,
    nystrom_gradient_init_,
    nystrom_init_,
    prove_init,
    save_adapter,
    snapshot_weights,
)

IDS = torch.arange(3, 13)[None]
NAMES = {"experts.gate_up_proj", "experts.down_proj"}


class Experts(nn.Module):
    """Three maps 20 → 6, stacked [3, out, in], or [3, in, out] where ``is_transposed``."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        draw = torch.Generator().manual_seed(0)
        self.maps = nn.Parameter(torch.randn(3, *((20, 6) if transposed else (6, 20)), generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eio->beo", x, self.maps if self.is_transposed else self.maps.mT)


class Bilinear(nn.Module):
    """One bare matrix [out, in] that no nn.Linear holds."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 20, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T


def _adapted(inner: nn.Module, parameter: str) -> Any:
    config = LoraConfig(r=4, lora_alpha=6, target_modules=[], target_parameters=[f"0.{parameter}"])
    return get_peft_model(nn.Sequential(inner), config)  # type: ignore[arg-type]


X = torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
KINDS = {
    "experts": (lambda: Experts(False), "maps", 3),
    "transposed experts": (lambda: Experts(True), "maps", 3),
    "one matrix": (Bilinear, "matrix", 1),
}
pytestmark = pytest.mark.filterwarnings("ignore:target_modules:UserWarning")


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_matrix_is_sketched_by_itself(kind: str, side: str) -> None:
    make, parameter, count = KINDS[kind]
    inner: Any = make()
    stored = getattr(inner, parameter).detach().clone()
    kept = fingerprint_weights(nn.Sequential(inner), {parameter})
    model = _adapted(inner, parameter)
    report = nystrom_init_(model, xi=0.1, side=side)
    assert prove_init(model, report.start, inputs={"input": X}, pretrained=kept).passed
    layers = lora_layers(model)
    assert [layer.name for layer in layers] == ([f"0.maps.{e}" for e in range(3)] if count == 3 else ["0.matrix"])
    stacked = stored[None] if count == 1 else stored.mT if kind == "transposed experts" else stored
    for W, layer in zip(stacked, layers, strict=True):
        draw = streams.generator(0, "init", layer.name)
        if side == "A":
            wanted = 0.1 / 1.5 * torch.randn(4, 6, generator=draw) @ W
            torch.testing.assert_close(layer.A.detach(), wanted, rtol=1e-5, atol=1e-6)
        else:
            wanted = 0.1 / 1.5 * W @ torch.randn(20, 4, generator=draw)
            torch.testing.assert_close(layer.B.detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_of_each_matrix_is_scaling_times_B_A(kind: str) -> None:
    make, parameter, _ = KINDS[kind]
    model = _adapted(make(), parameter)
    nystrom_init_(model, xi=0.1)
    layers = lora_layers(model)
    before = [layer.weight.clone() for layer in layers]
    layers[0].parameter_B.data.copy_(
        torch.randn(layers[0].parameter_B.shape, generator=torch.Generator().manual_seed(3))
    )
    updates = [(layer.scaling * layer.B @ layer.A).detach() for layer in layers]
    layers[0].module.merge()
    for layer, W, update in zip(layers, before, updates, strict=True):
        torch.testing.assert_close(layer.weight, W + update, rtol=1e-5, atol=1e-5)


def test_a_wrong_expert_or_a_changed_one_fails_the_proof() -> None:
    model = _adapted(Experts(False), "maps")
    kept = snapshot_weights(nn.Sequential(Experts(False)), {"maps"})
    start = nystrom_init_(model, xi=0.1).start
    layers = lora_layers(model)
    layers[0].held_weight.data[2, 0, 0] += 0.01
    problems = prove_init(model, start, pretrained=kept).problems
    assert len(problems) == 1 and problems[0].startswith("0.maps.2: the frozen weight")
    layers[0].held_weight.data[2, 0, 0] -= 0.01
    layers[1].A.data.copy_(layers[0].A.data.clone())
    assert [problem.split(":")[0] for problem in prove_init(model, start).problems] == ["0.maps.1"]


def test_the_gradients_sketch_of_each_expert() -> None:
    model = _adapted(Experts(False), "maps")
    base = Experts(False)
    base(X).square().mean().backward()
    assert base.maps.grad is not None
    nystrom_gradient_init_(model, lambda m: m(X).square().mean(), xi=0.1)
    for e, layer in enumerate(lora_layers(model)):
        G = torch.randn(4, 6, generator=streams.generator(0, "init", layer.name))
        torch.testing.assert_close(layer.A.detach(), -0.1 / 1.5 * G @ base.maps.grad[e], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["experts", "transposed experts"])
def test_nora_plus_scales_each_expert_by_its_own_partner(kind: str) -> None:
    """Against the formula, written out in float64 for every expert from PEFT's own stacking."""
    make, parameter, _ = KINDS[kind]
    model = _adapted(make(), parameter)
    nystrom_init_(model, xi=0.1)
    layer = lora_layers(model)[0]
    layer.parameter_B.data.normal_(generator=torch.Generator().manual_seed(3))
    optimizer = create_nora_plus_optimizer(model, torch.optim.SGD, lr=1.0, damping=1e-4)
    optimizer._nora_plus.steps = 1  # type: ignore[attr-defined]
    optimizer.param_groups[0]["nora_plus_steps"] = 1
    model(X).square().mean().backward()
    A, B = (p.detach().double().clone() for p in (layer.parameter_A, layer.parameter_B))
    g_A, g_B = (p.grad.double().clone() for p in (layer.parameter_A, layer.parameter_B))  # type: ignore[union-attr]
    optimizer.step()
    eye = 1e-4 * torch.eye(4, dtype=torch.float64)
    for e in range(3):
        rows, columns = slice(4 * e, 4 * e + 4), [3 * k + e for k in range(4)]
        P_B, P_A = torch.linalg.inv(A[rows] @ A[rows].T + eye), torch.linalg.inv(B[:, columns].T @ B[:, columns] + eye)
        wanted_A = A[rows] - (P_A / P_A.norm()) @ g_A[rows]
        wanted_B = B[:, columns] - g_B[:, columns] @ (P_B / P_B.norm())
        torch.testing.assert_close(layer.parameter_A[rows].double(), wanted_A, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.parameter_B[:, columns].double(), wanted_B, rtol=1e-4, atol=1e-5)


def _mixtral() -> Any:
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixtralForCausalLM(config).eval()


def test_a_mixture_of_experts_from_start_to_stock_loaders(tmp_path: Path) -> None:
    base = _mixtral()
    kept = snapshot_weights(base, {"q_proj", *NAMES})
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=sorted(f"mlp.{n}" for n in NAMES)
    )
    model: Any = get_peft_model(base, config)
    report = nystrom_init_(model, xi=0.1)
    assert report.passed and len(report.modules) == 7
    report = prove_init(model, report.start, inputs={"input_ids": IDS}, pretrained=kept)
    assert report.passed and report.output_difference == 0.0, report.problems
    optimizer = create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    wanted = model(input_ids=IDS).logits
    assert (wanted - _mixtral()(input_ids=IDS).logits).abs().max() > 1e-4
    save_adapter(model, tmp_path)
    by_transformers = _mixtral()
    by_transformers.load_adapter(str(tmp_path))
    for loaded in (PeftModel.from_pretrained(_mixtral(), str(tmp_path)), by_transformers):
        torch.testing.assert_close(loaded.eval()(input_ids=IDS).logits, wanted, rtol=0, atol=0)

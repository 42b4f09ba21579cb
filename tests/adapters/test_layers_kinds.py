"""The sketch in every kind of layer PEFT wraps: against the formula in float64, the output equal to the base's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nora import streams
from nora.adapters import lora_layers, nystrom_init_, prove_init
from twins import OneLinear, one_linear_with_lora, same_bytes, snapshot, tiny_opt, with_lora


class Net(nn.Module):
    """One module called ``proj`` of the given kind."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x, x, x)[0]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "linear": (lambda: nn.Linear(12, 20), torch.randn(3, 12, generator=_generator()), {}),
    "conv1d-gpt2": (lambda: Conv1D(20, 12), torch.randn(3, 12, generator=_generator()), {"fan_in_fan_out": True}),
    "conv1d": (lambda: nn.Conv1d(6, 20, 3), torch.randn(2, 6, 9, generator=_generator()), {}),
    "conv2d": (lambda: nn.Conv2d(6, 20, 3, padding=1), torch.randn(2, 6, 5, 5, generator=_generator()), {}),
    "conv2d-1x1": (lambda: nn.Conv2d(12, 20, 1), torch.randn(2, 12, 5, 5, generator=_generator()), {}),
    "embedding": (lambda: nn.Embedding(40, 12), torch.arange(10)[None], {}),
}


def _model(kind: str, **options: Any) -> tuple[Any, Tensor]:
    make, x, extra = KINDS[kind]
    torch.manual_seed(0)
    model = get_peft_model(Net(make()), LoraConfig(r=4, lora_alpha=6, target_modules=["proj"], **extra, **options))  # type: ignore[arg-type]
    return model.eval(), x


def _matrix(module: Any) -> np.ndarray:
    """The base weight as [out, in], read from the module by hand."""
    base = module.get_base_layer()
    W = base.weight.detach().double().numpy()
    return W.T if isinstance(base, nn.Embedding | Conv1D) else W.reshape(len(W), -1)


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("kind", KINDS)
def test_formula_in_float64_and_untouched_output(kind: str, side: str, divide: bool) -> None:
    model, x = _model(kind)
    with model.disable_adapter():
        base = model(x)
    kept = {name: t for name, t in snapshot(model).items() if "lora_" not in name}
    report = nystrom_init_(model, xi=0.3, side=side, divide_by_scaling=divide, seed=7)
    assert report.passed, report.problems
    (layer,) = lora_layers(model)
    W, G = _matrix(layer.module), streams.generator(7, "init", "proj")
    scale = 0.3 / 1.5 if divide else 0.3
    if side == "A":
        expected = scale * torch.randn(4, W.shape[0], generator=G).double().numpy() @ W
        read, zero = layer.A, layer.B
    else:
        expected = scale * W @ torch.randn(W.shape[1], 4, generator=G).double().numpy()
        read, zero = layer.B, layer.A
    np.testing.assert_allclose(read.detach().flatten(1).double().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert not zero.any()
    assert torch.equal(model(x), base)
    assert prove_init(model, inputs={"x": x}).output_difference == 0.0
    assert same_bytes(kept, {name: t for name, t in snapshot(model).items() if "lora_" not in name})


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_of_every_kind_is_scaling_times_B_A(kind: str) -> None:
    """What ``weight``, ``A`` and ``B`` promise: merging adds s B A to the [out, in] matrix."""
    model, _ = _model(kind)
    nystrom_init_(model, xi=0.3)
    (layer,) = lora_layers(model)
    layer.B.data.copy_(torch.randn(layer.B.shape, generator=_generator()))
    before = _matrix(layer.module).copy()
    update = layer.scaling * layer.B.detach().flatten(1) @ layer.A.detach().flatten(1)
    layer.module.merge()
    np.testing.assert_allclose(_matrix(layer.module) - before, update.double().numpy(), atol=1e-5)


def test_attention_with_one_shared_projection() -> None:
    model = get_peft_model(Attention().eval(), LoraConfig(r=4, target_modules=["proj"])).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 5, 16, generator=_generator())
    assert nystrom_init_(model, xi=0.1).passed
    assert prove_init(model, inputs={"x": x}).output_difference == 0.0
    assert [tuple(layer.weight.shape) for layer in lora_layers(model)] == [(48, 16), (16, 16)]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_rslora_and_dora(rslora: bool, dora: bool) -> None:
    base = tiny_opt()
    ids = torch.arange(3, 15)[None]
    reference = base(input_ids=ids).logits
    model = with_lora(
        base, rank=4, alpha=8, use_rslora=rslora, use_dora=dora,
        rank_pattern={"layers.1.self_attn.q_proj": 9}, alpha_pattern={"v_proj": 3},
    )  # fmt: skip
    started = nystrom_init_(model, xi=0.2, seed=1)
    assert started.passed
    report = prove_init(model, started.start, inputs={"input_ids": ids}, base_output=reference)
    assert report.passed and report.output_difference == 0.0
    for layer in lora_layers(model):
        rank, alpha = (9 if "1.self_attn.q" in layer.name else 4), (3 if "v_proj" in layer.name else 8)
        s = alpha / math.sqrt(rank) if rslora else alpha / rank
        G = torch.randn(rank, 32, generator=streams.generator(1, "init", layer.name)).double()
        torch.testing.assert_close(layer.A.double(), 0.2 / s * G @ layer.weight.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_bases_keep_float32_adapters_and_float32_products(dtype: torch.dtype) -> None:
    model = with_lora(tiny_opt(dtype=dtype))
    assert nystrom_init_(model, xi=0.1).passed
    for layer in lora_layers(model):
        assert layer.A.dtype == torch.float32 and layer.weight.dtype == dtype
        G = torch.randn(4, 32, generator=streams.generator(0, "init", layer.name)).double()
        torch.testing.assert_close(layer.A.double(), 0.05 * G @ layer.weight.double(), rtol=1e-5, atol=1e-6)
    assert prove_init(model, inputs={"input_ids": torch.arange(3, 9)[None]}).output_difference == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dora_on_a_half_base_is_proved_to_that_precision(dtype: torch.dtype) -> None:
    """PEFT rescales a DoRA layer's output in half precision, whatever the start: that rounding is no failed start."""
    model = with_lora(tiny_opt(dtype=dtype), use_dora=True)
    nystrom_init_(model, xi=0.1)
    inputs = {"input_ids": torch.arange(3, 15)[None]}
    report = prove_init(model, inputs=inputs)
    assert report.passed and 0 < (report.output_difference or 0) < 2 * torch.finfo(dtype).eps
    lora_layers(model)[0].B.data.fill_(1.0)
    assert any("the output differs" in problem for problem in prove_init(model, inputs=inputs).problems)


def test_a_wide_half_weight_is_read_in_blocks() -> None:
    """More entries than one block; every block must reach the product, on both sides."""
    from nora.adapters.layers import left_product, right_product

    W = torch.randn(2500, 2100, generator=_generator()).to(torch.bfloat16)
    G, omega = torch.randn(3, 2500, generator=_generator()), torch.randn(2100, 3, generator=_generator())
    torch.testing.assert_close(left_product(G, W).double(), G.double() @ W.double(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(right_product(W, omega).double(), W.double() @ omega.double(), rtol=1e-4, atol=1e-3)


def test_tied_base_weights_give_each_place_its_own_draw() -> None:
    with pytest.warns(UserWarning, match="ensure_weight_tying"):
        model = with_lora(tiny_opt(), target_modules=["embed_tokens", "lm_head"])
    layers = lora_layers(model)
    assert {layer.held_weight.data_ptr() for layer in layers} == {layers[0].held_weight.data_ptr()}, "tied"
    assert nystrom_init_(model, xi=0.1).passed
    assert prove_init(model, inputs={"input_ids": torch.arange(3, 9)[None]}).output_difference == 0.0


def test_several_adapters_are_independent_and_the_second_does_not_disturb_the_first() -> None:
    model = one_linear_with_lora()
    nystrom_init_(model, xi=0.1, seed=0)
    first = lora_layers(model)[0].A.detach().clone()
    model.add_adapter("other", LoraConfig(r=6, lora_alpha=6, target_modules=["proj"]))
    other = nystrom_init_(model, xi=0.2, side="B", adapter_name="other", seed=1)
    assert other.passed and torch.equal(lora_layers(model)[0].A, first)
    assert prove_init(model).passed
    waiting = prove_init(model, other.start, adapter_name="other")
    assert not waiting.passed and waiting.problems == (
        "proj: adapter 'other' is not active; call set_adapter('other') first",
    )
    model.set_adapter("other")
    assert prove_init(model, other.start, adapter_name="other").passed


def test_a_weight_of_rank_one_is_sketched_within_its_row_space() -> None:
    model = one_linear_with_lora(20, 12)
    (layer,) = lora_layers(model)
    u, v = torch.randn(20, 1, generator=_generator()), torch.randn(1, 12, generator=_generator())
    layer.module.get_base_layer().weight.data.copy_(u @ v)
    report = prove_init(model, nystrom_init_(model, xi=0.1).start)
    assert report.passed and torch.linalg.matrix_rank(layer.A.detach(), rtol=1e-4) == 1
    assert report.modules[0].rho == pytest.approx(12, rel=1e-4), "all of A lies in one direction"


def test_entries_are_normal_with_the_columns_norm_as_scale() -> None:
    """Kolmogorov–Smirnov: A_ij / ((ξ/s) ‖W_:j‖) ~ N(0, 1), columns orthogonal so that the entries are independent."""
    model = one_linear_with_lora(64, 64, rank=32, alpha=64)
    (layer,) = lora_layers(model)
    Q, _ = torch.linalg.qr(torch.randn(64, 64, generator=_generator()))
    norms = torch.linspace(0.5, 4, 64)
    layer.module.get_base_layer().weight.data.copy_(Q * norms)
    nystrom_init_(model, xi=0.3)
    standard = (layer.A.detach() / (0.15 * norms)).flatten().numpy()
    assert stats.kstest(standard, "norm").pvalue > 0.01
    assert stats.kstest(1.2 * standard, "norm").pvalue < 0.01, "the test can tell a scale off by 20 %"


@pytest.mark.parametrize("what", ["device_mesh", "ds_id"])
def test_a_sharded_weight_is_refused(what: str) -> None:
    model = one_linear_with_lora()
    weight = lora_layers(model)[0].held_weight
    setattr(weight, what, 1)
    with pytest.raises(ValueError, match="proj: given a sharded weight .*before the model is sharded"):
        nystrom_init_(model, xi=0.1)


def test_a_flattened_weight_is_refused() -> None:
    """What FSDP 1 leaves in a layer outside the forward pass: a flat piece."""
    model = one_linear_with_lora()
    base = lora_layers(model)[0].module.get_base_layer()
    base.weight = nn.Parameter(base.weight.detach().flatten()[:512], requires_grad=False)
    with pytest.raises(ValueError, match=r"proj: given a weight of shape \(512,\), required \(32, 32\)"):
        nystrom_init_(model, xi=0.1)


def test_an_integer_weight_is_refused() -> None:
    model = one_linear_with_lora()
    base = lora_layers(model)[0].module.get_base_layer()
    base.weight = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="proj: given a weight of torch.int8, required a floating-point weight"):
        nystrom_init_(model, xi=0.1)


def test_a_mixed_model_is_left_as_it_was_by_a_bad_last_layer() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1))
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0", "1"]))  # type: ignore[arg-type]
    net[1].get_base_layer().weight.data[3, 2, 0, 0] = math.nan  # type: ignore[operator]
    before = snapshot(model)
    with pytest.raises(ValueError, match="1: the pretrained weight has non-finite entries"):
        nystrom_init_(model, xi=0.1)
    assert same_bytes(before, snapshot(model))


def test_proving_gives_back_modes_and_trainability() -> None:
    model = with_lora(tiny_opt())
    nystrom_init_(model, xi=0.1)
    model.train()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    lora_layers(model)[0].A.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    prove_init(model, inputs={"input_ids": torch.arange(3, 9)[None]})
    assert model.training and {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_large_gram_matrices_are_estimated_closely() -> None:
    torch.manual_seed(0)
    model = with_lora(OneLinear(1100, 1200), target_modules=["proj"])
    report = prove_init(model, nystrom_init_(model, xi=0.1).start)
    (layer,) = lora_layers(model)
    W = layer.weight.double()
    exact = 1200 * torch.linalg.norm(W @ W.T) ** 2 / torch.linalg.norm(W) ** 4
    assert report.modules[0].rho_sketch == pytest.approx(float(exact), rel=0.02)

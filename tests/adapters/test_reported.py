"""What other people reported of adapters elsewhere, tried here: each test is one way in which a start, its proof or
NoRA+ was once wrong, with the right value. (Saving has files of its own: test_saving.py, test_saving_diffusers.py.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from sharding import mesh as mesh
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

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
from nora.adapters.initialize import expected_factors, initialize_
from twins import same_bytes, snapshot, tiny_llama

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(9))


class Two(nn.Module):
    """v(relu(q(norm(x)))) of width 16, seeded."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.norm, self.q, self.v = nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.v(torch.relu(self.q(self.norm(x))))
        return output


def _two(**options: Any) -> Any:
    return get_peft_model(Two(), LoraConfig(**{"r": 4, "target_modules": ["q", "v"], **options}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("injected", [True, False])
def test_a_half_precision_adapter_equals_the_rounded_formula(dtype: torch.dtype, injected: bool) -> None:
    """diffusers' scripts cast the UNet, then add the adapter, which is then half too."""
    model: Any = nn.Sequential(nn.Linear(32, 32)).to(dtype)
    config = LoraConfig(r=4, target_modules=["0"])
    if injected:
        model = inject_adapter_in_model(config, model)
    else:
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    report = nystrom_init_(model, xi=0.1)
    (layer,) = lora_layers(model)
    assert layer.A.dtype == dtype and report.passed, report.problems
    assert torch.equal(layer.A, expected_factors(layer, layer.weight, report.start).A.to(dtype))
    layer.A.data.mul_(1 + 4 * torch.finfo(dtype).eps)  # off by a few units in the last place
    assert not prove_init(model, report.start).passed


@pytest.mark.parametrize("moved", ["pissa", "olora"])
def test_a_base_moved_by_another_start_is_found_out(moved: str, tmp_path: Path) -> None:
    model = _two(init_lora_weights=moved)
    model.add_adapter("late", LoraConfig(r=4, target_modules=["q"]))
    model.set_adapter("late")
    before = snapshot(model)
    message = "the base was moved by the start of adapter 'default'"
    with pytest.raises(ValueError, match=message):
        nystrom_init_(model, xi=0.1, adapter_name="late")
    report = prove_init(model, adapter_name="late")
    assert not report.passed and any(message in problem for problem in report.problems)
    with pytest.raises(ValueError, match=message):
        save_adapter(model, tmp_path / "saved", adapter_name="late")
    with pytest.raises(ValueError, match=message):
        nystrom_init_(_two(init_lora_weights=moved), xi=0.1, overwrite=True)
    assert same_bytes(before, snapshot(model)) and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:FSDP2:UserWarning")
def test_accelerates_switch_of_parameters_keeps_nora_plus(mesh: Any) -> None:
    """FSDP 2: the optimiser is made, the model is sharded, then accelerate gives the optimiser the new parameters."""
    from accelerate.utils.fsdp_utils import fsdp2_switch_optimizer_parameters
    from torch.distributed.fsdp import fully_shard

    def made() -> tuple[Any, Any]:
        model = _two().eval()
        nystrom_init_(model, xi=0.1)
        return model, create_nora_plus_optimizer(model, torch.optim.SGD, lr=0.5, max_grad_norm=1e-3)

    def trained(model: Any, optimizer: Any) -> Tensor:
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
        output = model(X).detach()
        whole: Tensor = output.full_tensor() if hasattr(output, "full_tensor") else output
        return whole

    wanted = trained(*made())
    model, optimizer = made()
    names = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    kept = type("Kept", (), {})
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            kept = type("Kept", (), {"data_ptr": parameter.data_ptr()})  # all that accelerate keeps of it
            group["params"][i] = kept()
    fully_shard(model, mesh=mesh)
    fsdp2_switch_optimizer_parameters(optimizer, {names[name]: p for name, p in model.named_parameters()})
    torch.testing.assert_close(trained(model, optimizer), wanted, rtol=0, atol=0)

    model, optimizer = made()
    fully_shard(model, mesh=mesh)  # and nobody told the optimiser
    model(X).square().mean().backward()
    with pytest.raises(ValueError, match="no longer the model's LoRA factors"):
        optimizer.step()


def test_a_zero_weight_is_refused_and_a_zero_adapter_is_no_start() -> None:
    """ControlNet's zero convolution: sketch 0 and B 0, which no step leaves."""
    base = Two()
    nn.init.zeros_(base.v.weight)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q", "v"]))  # type: ignore[arg-type]
    before = snapshot(model)
    with pytest.raises(ValueError, match="v: the pretrained weight is zero and so is its sketch"):
        nystrom_init_(model, xi=0.1)
    assert same_bytes(before, snapshot(model))
    model = _two()
    start = nystrom_init_(model, xi=0.1).start
    lora_layers(model)[1].A.data.zero_()
    assert any("saddle" in problem for problem in prove_init(model, start).problems)


def test_a_frozen_partner_or_an_inactive_adapter_is_no_start() -> None:
    model = _two()
    start = nystrom_init_(model, xi=0.1).start
    assert prove_init(model, start).passed
    lora_layers(model)[0].B.requires_grad_(False)
    assert any("factor B is frozen" in problem for problem in prove_init(model, start).problems)
    model = _two()
    start = nystrom_init_(model, xi=0.1).start
    model.add_adapter("other", LoraConfig(r=4, target_modules=["q"]))
    model.set_adapter("other")
    assert any("is not active" in problem for problem in prove_init(model, start).problems)


class _Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.l = nn.Conv2d(4, 8, 3), nn.Linear(8, 8)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(16, 2)


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=16))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("taken", [snapshot_weights, fingerprint_weights])
@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (_gpt2, "attn.c_proj", (32, 32)),
        (_gpt2, "c_attn", (96, 32)),
        (_gpt2, "wte", (32, 50)),
        (_Convolution, "c", (8, 36)),
        (_Attention, "mha", (48, 16)),
    ],
)
def test_what_is_kept_of_the_pretrained_weights_has_one_shape(taken: Any, make: Any, name: str, shape: Any) -> None:
    model = make()
    kept = taken(model, {name})
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=[name], fan_in_fan_out=name in ("attn.c_proj", "c_attn"))
    )
    assert tuple(next(iter(kept.values())).shape) == shape
    start = nystrom_init_(adapted, xi=0.1).start
    report = prove_init(adapted, start, pretrained=kept)
    assert report.passed, report.problems
    held = lora_layers(adapted)[0].held_weight
    held.data.view(-1)[0] += 1e-3 * held.abs().max()
    report = prove_init(adapted, start, pretrained=kept)
    assert not report.passed and any("the frozen weight is off by" in problem for problem in report.problems)


def test_a_fingerprint_estimates_the_distance_and_keeps_little() -> None:
    """‖S D‖/√8 within a quarter of ‖D‖ (one standard deviation over Gaussian S); 0 exactly for the same bytes."""
    net = nn.ModuleDict({"q": nn.Linear(512, 256, bias=False)})
    kept = fingerprint_weights(net, {"q"})["q"]
    assert kept.sketch.numel() == 8 * 512 and kept.distance(net["q"].weight.detach()) == 0.0
    moved = net["q"].weight.detach() + 0.01 * torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.norm(moved - net["q"].weight.detach()) / torch.linalg.norm(net["q"].weight.detach())
    assert kept.distance(moved) == pytest.approx(float(exact), rel=0.1)
    assert kept.distance(moved.T) == float("inf")
    rounded = net["q"].weight.detach().to(torch.bfloat16)
    assert 0 < kept.distance(rounded) < 0.01, "another dtype is another weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_neither_the_draw_nor_the_verdict(dtype: torch.dtype) -> None:
    def made() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return get_peft_model(nn.Sequential(nn.Linear(64, 64, dtype=dtype)), LoraConfig(r=4, target_modules=["0"]))

    model, other = made(), made()
    assert nystrom_init_(model, xi=0.1).passed
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = nystrom_init_(other, xi=0.1)
        assert report.passed and prove_init(other, report.start).passed
    assert torch.equal(lora_layers(model)[0].A, lora_layers(other)[0].A)


@pytest.mark.parametrize("normalize", ["frobenius", "none"])
def test_a_step_under_autocast_is_the_float32_step(normalize: str) -> None:
    def stepped(autocast: bool) -> Tensor:
        model = _two().eval()
        nystrom_init_(model, xi=0.1)
        optimizer = create_nora_plus_optimizer(model, torch.optim.SGD, lr=1.0, normalize=normalize, damping=1e-4)
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                optimizer.step()
        return lora_layers(model)[0].B.detach()

    assert torch.equal(stepped(True), stepped(False))


def test_every_submodule_gets_its_own_mode_back() -> None:
    model = _two()
    nystrom_init_(model, xi=0.1)
    model.train()
    norm = model.get_base_model().norm.eval()
    seen = norm.running_mean.clone()
    assert prove_init(model, inputs={"x": X}).passed
    assert model.training and not norm.training and torch.equal(norm.running_mean, seen)


def _checkpointing(reentrant: bool) -> Any:
    def prepare(model: Any) -> None:
        model.enable_input_require_grads()
        model.get_base_model().activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": reentrant}
        )

    return prepare


@pytest.mark.parametrize(
    ("options", "prepare"),
    [
        ({}, None),
        ({"lora_dropout": 0.5}, None),
        ({}, _checkpointing(False)),
        ({}, _checkpointing(True)),
        ({"use_rslora": True, "lora_alpha": 7}, None),
    ],
    ids=["plain", "dropout", "checkpointing", "reentrant checkpointing", "rslora"],
)
@pytest.mark.filterwarnings("ignore:.*use_cache:UserWarning")
def test_the_gradients_sketch_in_train_mode(options: dict[str, Any], prepare: Any) -> None:
    ids = torch.arange(3, 13)[None]

    def loss(model: Any) -> Tensor:
        value: Tensor = model(input_ids=ids, labels=ids).loss
        return value

    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options)).train()
    if prepare is not None:
        prepare(model)
    nystrom_gradient_init_(model, loss, xi=0.1)
    base = tiny_llama().requires_grad_(True)
    loss(base).backward()
    for layer in lora_layers(model):
        gradient = base.get_submodule(layer.name).weight.grad
        G = torch.randn(4, gradient.shape[0], generator=streams.generator(0, "init", layer.name))
        wanted = -(0.1 / layer.scaling) * G @ gradient
        assert torch.linalg.norm(layer.A - wanted) <= 1e-5 * torch.linalg.norm(wanted)


@pytest.mark.parametrize("how", ["frozen", "inactive", "off"])
def test_a_gradient_sketch_of_an_adapter_no_loss_depends_on_is_refused(how: str) -> None:
    model = _two()
    if how == "frozen":
        lora_layers(model)[0].A.requires_grad_(False)
    elif how == "inactive":
        model.add_adapter("other", LoraConfig(r=4, target_modules=["q"]))
        model.set_adapter("other")
    else:
        model.base_model.disable_adapter_layers()
    before = snapshot(model)
    with pytest.raises(ValueError, match="is frozen|is not active|are switched off"):
        nystrom_gradient_init_(model, lambda m: m(X).square().mean(), xi=0.1)
    assert same_bytes(before, snapshot(model))


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_of_lower_rank_than_the_adapter_is_told_and_the_pseudo_inverse_moves_it(seed: int) -> None:
    """(A Aᵀ)⁺ leaves the empty directions out. Otherwise they, which are rounding and so each processor's own (the loss
    left was between 0.56 and 1.7 of the first), take most of P."""
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(64, 2, generator=draw) @ torch.randn(2, 64, generator=draw) / 8
    x = torch.randn(128, 64, generator=draw)

    def left(**settings: Any) -> float:
        layer = nn.Linear(64, 64, bias=False)
        layer.weight.data.copy_(W)
        model = get_peft_model(nn.Sequential(layer), LoraConfig(r=8, lora_alpha=8, target_modules=["0"]))
        nystrom_init_(model, xi=0.1)
        optimizer = create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-3, **settings)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x) - 1.1 * x @ W.T).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses[-1] / losses[0]

    with pytest.warns(UserWarning, match=r"0: 6 directions of its rank are empty .* give inverse='pinv', damping=0.0"):
        damped = left()
    leaving_out, unnormalised = left(inverse="pinv", damping=0.0), left(normalize="none")
    assert leaving_out < 0.55 and leaving_out < min(damped, unnormalised), (damped, leaving_out, unnormalised)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_start_that_moves_a_half_precision_base_passes_within_its_rounding_and_no_further(
    init: str, dtype: torch.dtype
) -> None:
    """PEFT rounds the factors and what is left of the base to the base's dtype, then keeps the factors in float32."""
    base = tiny_llama().to(dtype).eval()
    ids = {"input_ids": torch.arange(3, 19)[None]}
    with torch.no_grad():
        pretrained, output = snapshot_weights(base, {"q_proj", "v_proj"}), base(**ids).logits
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=init))
    start = initialize_(model, init)
    report = prove_init(model, start, inputs=ids, pretrained=pretrained, base_output=output)
    assert report.passed, report.problems
    layer = lora_layers(model)[1]
    assert layer.A.dtype == torch.float32
    with torch.no_grad():
        layer.A.mul_(1.02)
    moved = prove_init(model, start, inputs=ids, pretrained=pretrained, base_output=output)
    assert not moved.passed and all(layer.name in problem for problem in moved.problems[:2])

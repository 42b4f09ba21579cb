"""Parameters of PEFT that hold several pairs at once (grouped convolutions, BD-LoRA), and a pair that two layers read
(tied factors): the pairs are read as PEFT's forward reads them, and started and stepped each by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import BdLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

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
from nora.adapters.layers import adapter_layers
from twins import randomize_factors, same_bytes, snapshot, tiny_llama

pytestmark = [
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
DRAW = torch.Generator().manual_seed(3)
XI, ALPHA, RANK = 0.3, 6, 8
IDS = torch.arange(3, 13)[None]
KINDS: dict[str, Any] = {
    "a convolution in 2 groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), torch.randn(3, 4, 5, 5, generator=DRAW), {}),
    "a convolution per channel": (lambda: nn.Conv1d(4, 8, 3, groups=4), torch.randn(3, 4, 7, generator=DRAW), {}),
    "A in 2 blocks": (lambda: nn.Linear(12, 10), torch.randn(5, 12, generator=DRAW), {"a": ["0"]}),
    "B in 2 blocks": (lambda: nn.Linear(12, 10), torch.randn(5, 12, generator=DRAW), {"b": ["0"]}),
}


def _base(kind: str) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(KINDS[kind][0]())


def _adapted(kind: str) -> tuple[Any, Tensor]:
    blocks = KINDS[kind][2]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
    if blocks:
        config.use_bdlora = BdLoraConfig(blocks.get("a"), blocks.get("b"), nblocks=2)
    return get_peft_model(_base(kind), config), KINDS[kind][1]  # type: ignore[arg-type]


def _pairs(kind: str) -> list[tuple[np.ndarray, slice, slice]]:
    """By hand, of each pair: its W [out, in], and the rows and columns where the whole map [out, in] has it."""
    W = next(_base(kind).parameters()).detach().double()
    made = []
    if W.dim() > 2:
        groups = _base(kind)[0].groups
        out, channels = len(W) // groups, W.shape[1]
        for i in range(groups):
            dense = torch.zeros(out, groups * channels, *W.shape[2:], dtype=torch.double)
            dense[:, i * channels : (i + 1) * channels] = W[i * out : (i + 1) * out]
            made.append((dense.flatten(1).numpy(), slice(i * out, (i + 1) * out), slice(None)))
    elif "a" in KINDS[kind][2]:
        made = [(W[:, c].numpy(), slice(None), c) for c in (slice(0, 6), slice(6, 12))]
    else:
        made = [(W[r].numpy(), r, slice(None)) for r in (slice(0, 5), slice(5, 10))]
    return made


def _output(kind: str, x: Tensor, changes: list[Tensor]) -> Tensor:
    """The layer as one dense map: W of every pair + its change, put where it belongs, applied without groups."""
    base = _base(kind).double()[0]
    pairs = _pairs(kind)
    convolution = isinstance(base, nn.Conv1d | nn.Conv2d)
    width = x.shape[1] * (base.weight[0, 0].numel() if convolution else 1)
    M = torch.zeros(len(base.weight), width, dtype=torch.double)
    for (W, rows, columns), change in zip(pairs, changes, strict=True):
        placed = torch.zeros_like(M)
        placed[rows, columns] = torch.from_numpy(W)
        at = torch.zeros_like(M, dtype=torch.bool)
        at[rows, columns] = True
        M = M + placed + torch.zeros_like(M).masked_scatter(at, change)
    if not convolution:
        return nn.functional.linear(x.double(), M, base.bias)
    function = nn.functional.conv2d if isinstance(base, nn.Conv2d) else nn.functional.conv1d
    made: Tensor = function(x.double(), M.view(len(M), x.shape[1], *base.weight.shape[2:]), base.bias)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_pairs_are_what_the_forward_reads(kind: str) -> None:
    model, x = _adapted(kind)
    model.double()
    randomize_factors(model)
    layers = lora_layers(model)
    changes = [x.scaling * (x.B.flatten(1) @ x.A.flatten(1)) for x in layers]
    torch.testing.assert_close(model(x.double()), _output(kind, x, changes), rtol=1e-10, atol=1e-12)
    for layer, (W, _, _) in zip(layers, _pairs(kind), strict=True):
        np.testing.assert_allclose(layer.weight.numpy(), W)


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_pair_is_a_sketch_of_its_own_weight(kind: str, side: str) -> None:
    kept, prints = snapshot_weights(_base(kind), {"0"}), fingerprint_weights(_base(kind), {"0"})
    model, x = _adapted(kind)
    base = model(x)
    report = nystrom_init_(model, xi=XI, side=side, seed=7)
    assert report.passed and torch.equal(model(x), base)
    for i, (layer, (W, _, _)) in enumerate(zip(lora_layers(model), _pairs(kind), strict=True)):
        draw = streams.generator(7, "init", f"0.{i}")
        r = RANK // len(_pairs(kind))
        if side == "A":
            wanted = XI / (ALPHA / RANK) * torch.randn(r, len(W), generator=draw).double().numpy() @ W
            read, zero = layer.A, layer.B
        else:
            wanted = XI / (ALPHA / RANK) * W @ torch.randn(W.shape[1], r, generator=draw).double().numpy()
            read, zero = layer.B, layer.A
        np.testing.assert_allclose(read.detach().flatten(1).numpy(), wanted, rtol=1e-5, atol=1e-6)
        assert not zero.any()
    known: Any
    for known in (kept, prints):
        assert prove_init(model, report.start, pretrained=known, inputs={"input": x}).passed
    held = lora_layers(model)[0].held_weight
    held.data[0, 0] += 1e-3
    for known in (kept, prints):
        moved = prove_init(model, report.start, pretrained=known)
        assert not moved.passed and any("frozen weight is off" in problem for problem in moved.problems)


@pytest.mark.parametrize("kind", KINDS)
def test_nora_plus_scales_each_pair_by_its_own_partner(kind: str) -> None:
    """Against free pairs in float64, each with its own gradient, and the formula by numpy."""
    model, x = _adapted(kind)
    model.double()
    nystrom_init_(model, xi=XI)
    free = [
        [x.A.detach().flatten(1).clone().requires_grad_(), x.B.detach().flatten(1).clone().requires_grad_()]
        for x in lora_layers(model)
    ]
    optimizer = create_nora_plus_optimizer(model, torch.optim.SGD, lr=0.5, damping=1e-3)
    for step in range(3):
        optimizer.zero_grad()
        model(x.double()).square().mean().backward()
        optimizer.step()
        loss = _output(kind, x, [ALPHA / RANK * B @ A for A, B in free]).square().mean()
        gradients = torch.autograd.grad(loss, [factor for pair in free for factor in pair])
        for i, (A, B) in enumerate(free):
            P = {}
            for name, gram in (("B", A @ A.T), ("A", B.T @ B)):
                inverse = np.linalg.inv(gram.detach().numpy() + 1e-3 * np.eye(len(gram)))
                P[name] = torch.from_numpy(inverse / np.linalg.norm(inverse))
            with torch.no_grad():
                A -= 0.5 * (P["A"] @ gradients[2 * i] if step else gradients[2 * i])
                B -= 0.5 * gradients[2 * i + 1] @ P["B"]
    for layer, (A, B) in zip(lora_layers(model), free, strict=True):
        torch.testing.assert_close(layer.A.flatten(1), A, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(layer.B.flatten(1), B, rtol=1e-8, atol=1e-12)
        assert layer.B.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradients_sketch_of_each_pair(kind: str) -> None:
    model, x = _adapted(kind)
    nystrom_gradient_init_(model, lambda m: m(x).square().mean(), xi=XI)
    changes = [torch.zeros(W.shape, dtype=torch.double, requires_grad=True) for W, _, _ in _pairs(kind)]
    gradients = torch.autograd.grad(_output(kind, x, changes).square().mean(), changes)
    for i, (layer, gradient) in enumerate(zip(lora_layers(model), gradients, strict=True)):
        G = torch.randn(layer.rank, len(gradient), generator=streams.generator(0, "init", f"0.{i}")).double()
        wanted = -XI / (ALPHA / RANK) * G @ gradient
        assert torch.linalg.norm(layer.A.flatten(1) - wanted) <= 1e-5 * torch.linalg.norm(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_it_is_a_stock_adapter(kind: str, tmp_path: Path) -> None:
    model, x = _adapted(kind)
    randomize_factors(model)
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(_base(kind), str(tmp_path))  # type: ignore[arg-type]
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


def _tied(**options: Any) -> Any:
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)
    return get_peft_model(tiny_llama(**options), config)


def test_a_tied_head_reads_the_embeddings_pair_transposed() -> None:
    model = _tied()
    base = tiny_llama()(input_ids=IDS).logits
    report = nystrom_init_(model, xi=XI)
    assert report.passed and [x.name for x in report.modules] == ["model.embed_tokens", *_names(model)]
    assert torch.equal(model(input_ids=IDS).logits, base)
    head = next(x for x in adapter_layers(model) if x.name == "lm_head")
    omega = torch.randn(4, 16, generator=streams.generator(0, "init", "model.embed_tokens")).T
    torch.testing.assert_close(head.B, XI / 1.5 * head.weight @ omega, rtol=1e-5, atol=1e-6)
    assert not head.A.any()
    before = snapshot(model)
    with pytest.raises(ValueError, match="shares a factor with lm_head"):
        nystrom_gradient_init_(model, lambda m: m(input_ids=IDS, labels=IDS).loss, xi=XI, overwrite=True)
    assert same_bytes(before, snapshot(model))


def _names(model: Any) -> list[str]:
    return [x.name for x in lora_layers(model) if x.name.endswith("q_proj")]


def test_a_tied_pair_is_stepped_by_its_whole_gradient() -> None:
    """SGD on PEFT's two views of a factor adds both gradients: NoRA+ of the sum is the sum of NoRA+."""
    config = LoraConfig(r=4, target_modules=["embed_tokens"], ensure_weight_tying=True)
    model: Any = get_peft_model(tiny_llama(dtype=torch.float64), config, autocast_adapter_dtype=False)
    randomize_factors(model)
    head, embedding = adapter_layers(model)
    A, B = embedding.A.detach().clone(), embedding.B.detach().clone()
    optimizer = create_nora_plus_optimizer(model, torch.optim.SGD, lr=0.5, damping=1e-3)
    optimizer._nora_plus.steps = 1  # type: ignore[attr-defined]
    model(input_ids=IDS, labels=IDS).loss.backward()
    total_A = embedding.parameter_A.grad + head.parameter_B.grad.T
    total_B = embedding.parameter_B.grad + head.parameter_A.grad.T
    optimizer.step()
    inverse_A, inverse_B = (torch.linalg.inv(gram + 1e-3 * torch.eye(4)) for gram in (A @ A.T, B.T @ B))
    torch.testing.assert_close(embedding.A, A - 0.5 * inverse_B / torch.linalg.norm(inverse_B) @ total_A)
    torch.testing.assert_close(embedding.B, B - 0.5 * total_B @ inverse_A / torch.linalg.norm(inverse_A))
    assert torch.equal(head.A, embedding.B.T) and torch.equal(head.B, embedding.A.T)


@pytest.mark.parametrize("moved", [False, True])
def test_tied_factors_are_saved_as_what_they_are(moved: bool, tmp_path: Path) -> None:
    """Moving a model (device, dtype) copies PEFT's views: two pairs are trained then, and the file must say so."""
    model = _tied().bfloat16().float() if moved else _tied()
    randomize_factors(model)
    head, embedding = (x for x in adapter_layers(model) if "q_proj" not in x.name)
    assert torch.equal(head.A, embedding.B.T) != moved
    save_adapter(model, tmp_path)
    base = tiny_llama().bfloat16().float() if moved else tiny_llama()
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=0, atol=1e-6)


def test_one_factor_of_two_weights_is_refused() -> None:
    model: Any = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj", "k_proj"]))
    k, q = lora_layers(model)
    q.module.lora_A["default"].weight = k.parameter_A
    before = snapshot(model)
    for attempt in (
        lambda: nystrom_init_(model, xi=XI),
        lambda: create_nora_plus_optimizer(model, torch.optim.SGD, lr=1.0),
    ):
        with pytest.raises(ValueError, match="q_proj: shares a factor with .*k_proj: it can be a sketch of only one"):
            attempt()
    assert same_bytes(before, snapshot(model))

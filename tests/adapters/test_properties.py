"""What holds for every shape, rank, dtype, scale and seed (hypothesis)."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from nora import streams
from nora.adapters import lora_layers, nystrom_init_, prove_init
from nora.adapters.preconditioner import damped_inverse


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    out_features, in_features = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return {
        "shape": (out_features, in_features),
        "rank": draw(st.integers(1, min(out_features, in_features))),
        "alpha": draw(st.integers(1, 64)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])),
        "xi": draw(st.floats(1e-3, 10)),
        "side": draw(st.sampled_from("AB")),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "null": draw(st.integers(0, 3)),
    }


@settings(max_examples=60, deadline=None)
@given(cases())
def test_formula_output_proof_and_repeat(case: dict) -> None:  # type: ignore[type-arg]
    out_features, in_features = case["shape"]
    net = nn.Sequential(nn.Linear(in_features, out_features, bias=False))
    weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0))
    weight[: case["null"]] = 0  # rank-deficient ones too
    weight[0, 0] = 1.0
    net[0].weight.data.copy_(weight)
    net.to(case["dtype"])
    x = torch.randn(2, in_features).to(case["dtype"])
    base = net(x)
    model = get_peft_model(net, LoraConfig(r=case["rank"], lora_alpha=case["alpha"], target_modules=["0"]))  # type: ignore[arg-type]
    report = nystrom_init_(model, xi=case["xi"], side=case["side"], seed=case["seed"])
    assert report.passed, report.problems
    assert torch.equal(model(x), base)
    (layer,) = lora_layers(model)
    W, draw = layer.weight.double(), streams.generator(case["seed"], "init", "0")
    scale = case["xi"] * case["rank"] / case["alpha"]
    if case["side"] == "A":
        expected, read = scale * torch.randn(case["rank"], out_features, generator=draw).double() @ W, layer.A
    else:
        expected, read = scale * W @ torch.randn(in_features, case["rank"], generator=draw).double(), layer.B
    torch.testing.assert_close(read.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-12)
    kept = read.detach().clone()
    nystrom_init_(model, xi=case["xi"], side=case["side"], seed=case["seed"], overwrite=True)
    assert torch.equal(read, kept), "a repeat gives the same bits"
    with torch.no_grad():
        read.mul_(1.001)
    assert not prove_init(model).passed, "a factor off by a thousandth does not pass"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.sampled_from([1e-6, 1e-2, 1.0]), st.integers(0, 99))
def test_damped_inverse_inverts_and_has_norm_one(rank: int, count: int, damping: float, seed: int) -> None:
    F = torch.randn(count, rank, rank + 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gram = F @ F.mT
    eye = torch.eye(rank, dtype=torch.float64).expand(count, -1, -1)
    for inverse in ("cholesky", "pinv"):
        P = damped_inverse(gram, damping=damping, normalize="none", inverse=inverse)
        torch.testing.assert_close(P @ (gram + damping * eye), eye.contiguous(), rtol=1e-6, atol=1e-6)
        normed = damped_inverse(gram, damping=damping, normalize="frobenius", inverse=inverse)
        torch.testing.assert_close(torch.linalg.matrix_norm(normed), torch.ones(count, dtype=torch.float64))

"""The gradient preconditioner against a naive float64 loop with explicit inverses, and against PEFT's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from peft.optimizers import create_riemannian_optimizer

from nora.adapters import AdapterLayer, Preconditioner, initialize_, lora_layers
from nora.adapters.preconditioner import damped_inverse
from twins import one_linear_with_lora, randomize_factors, tiny_opt, with_lora


def _give_gradients(layers: Sequence[AdapterLayer], seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        layer.A.grad = torch.randn(layer.A.shape, generator=generator).to(layer.A.dtype)
        layer.B.grad = torch.randn(layer.B.shape, generator=generator).to(layer.B.dtype)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().copy()


def _naive(layer: AdapterLayer, damping: float, normalize: str) -> tuple[np.ndarray, np.ndarray]:
    """g_A ← P_A g_A with P_A = (BᵀB + λI)⁻¹ and g_B ← g_B P_B with P_B = (AAᵀ + λI)⁻¹, each over its ‖·‖_F."""
    A, B, gA, gB = map(_numpy, (layer.A, layer.B, layer.A.grad, layer.B.grad))  # type: ignore[arg-type]
    P_A = np.linalg.inv(B.T @ B + damping * np.eye(len(A)))
    P_B = np.linalg.inv(A @ A.T + damping * np.eye(len(A)))
    if normalize == "frobenius":
        P_A, P_B = P_A / np.linalg.norm(P_A), P_B / np.linalg.norm(P_B)
    return P_A @ gA, gB @ P_B


@pytest.mark.parametrize("normalize", ["frobenius", "none"])
@pytest.mark.parametrize("damping", [1e-6, 1e-2])
def test_equals_the_naive_loop_with_mixed_ranks(normalize: str, damping: float) -> None:
    model = with_lora(tiny_opt(), rank=4, rank_pattern={"v_proj": 7, "layers.1.self_attn.q_proj": 2})
    randomize_factors(model)
    layers = lora_layers(model)
    assert sorted(layer.rank for layer in layers) == [2, 4, 7, 7]
    _give_gradients(layers)
    expected = {layer.name: _naive(layer, damping, normalize) for layer in layers}
    Preconditioner(layers, damping=damping, normalize=normalize).step()
    for layer in layers:
        for read, wanted in zip((layer.A.grad, layer.B.grad), expected[layer.name], strict=True):
            np.testing.assert_allclose(_numpy(read), wanted, rtol=2e-4, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(("rank", "out"), [(8, 2048), (4, 1024), (4, 1026), (3, 1025), (32, 1024), (8, 2049)])
def test_long_factors_are_scaled_as_short_ones(rank: int, out: int) -> None:
    """From 1,024 rows on, several rows may be multiplied at once; two layers, so that a mixed-up block would show."""
    layers = []
    for seed in (0, 1):
        model = one_linear_with_lora(in_features=24, out_features=out, rank=rank)
        randomize_factors(model, seed=seed)
        layers += lora_layers(model)
    _give_gradients(layers)
    expected = [_naive(layer, 1e-2, "frobenius") for layer in layers]
    Preconditioner(layers, damping=1e-2).step()
    for layer, wanted in zip(layers, expected, strict=True):
        np.testing.assert_allclose(_numpy(layer.A.grad), wanted[0], rtol=1e-3, atol=1e-4 * np.abs(wanted[0]).max())
        np.testing.assert_allclose(_numpy(layer.B.grad), wanted[1], rtol=1e-3, atol=1e-4 * np.abs(wanted[1]).max())


def test_float64_factors_are_preconditioned_in_float64() -> None:
    model = one_linear_with_lora().double()
    randomize_factors(model)
    (layer,) = lora_layers(model)
    _give_gradients([layer])
    expected = _naive(layer, 1e-6, "frobenius")
    Preconditioner([layer]).step()
    np.testing.assert_allclose(_numpy(layer.A.grad), expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(_numpy(layer.B.grad), expected[1], rtol=1e-9, atol=1e-12)


def test_unnormalised_equals_pefts_riemannian_optimizer() -> None:
    """One SGD step of PEFT's optimiser reveals its preconditioned gradient: (before - after) / lr."""
    ours, pefts = (with_lora(tiny_opt(dtype=torch.float64)) for _ in range(2))
    for model in (ours, pefts):
        randomize_factors(model)
        _give_gradients(lora_layers(model))
    before = [(_numpy(x.A), _numpy(x.B)) for x in lora_layers(pefts)]
    create_riemannian_optimizer(pefts, torch.optim.SGD, lr=0.5, reg=1e-3).step()
    Preconditioner(lora_layers(ours), damping=1e-3, normalize="none").step()
    for mine, theirs, (A, B) in zip(lora_layers(ours), lora_layers(pefts), before, strict=True):
        np.testing.assert_allclose(_numpy(mine.A.grad), (A - _numpy(theirs.A)) / 0.5, rtol=1e-4)
        np.testing.assert_allclose(_numpy(mine.B.grad), (B - _numpy(theirs.B)) / 0.5, rtol=1e-4)


def test_the_factors_themselves_are_not_touched() -> None:
    model = with_lora(tiny_opt())
    randomize_factors(model)
    layers = lora_layers(model)
    _give_gradients(layers)
    before = [(layer.A.detach().clone(), layer.B.detach().clone()) for layer in layers]
    Preconditioner(layers).step()
    assert all(torch.equal(x.A, A) and torch.equal(x.B, B) for x, (A, B) in zip(layers, before, strict=True))


@pytest.mark.parametrize("side, skipped", [("A", "A"), ("B", "B")])
def test_first_step_skips_the_factor_whose_partner_is_zero(side: str, skipped: str) -> None:
    """At t = 0 the sketched factor's own gradient stays; its partner's is preconditioned. At t = 1 both are."""
    model = one_linear_with_lora()
    initialize_(model, "nystrom", side=side)
    (layer,) = lora_layers(model)
    preconditioner = Preconditioner([layer])
    other = "B" if skipped == "A" else "A"
    for step in (0, 1):
        _give_gradients([layer])
        given = {key: getattr(layer, key).grad.clone() for key in "AB"}
        expected = dict(zip("AB", _naive(layer, 1e-6, "frobenius"), strict=True))
        preconditioner.step()
        np.testing.assert_allclose(_numpy(getattr(layer, other).grad), expected[other], rtol=1e-3, atol=1e-5)
        if step == 0:
            assert torch.equal(getattr(layer, skipped).grad, given[skipped])
        else:
            np.testing.assert_allclose(_numpy(getattr(layer, skipped).grad), expected[skipped], rtol=1e-3, atol=1e-5)
    assert preconditioner.steps == 2


def test_a_resumed_preconditioner_skips_nothing() -> None:
    model = one_linear_with_lora()
    initialize_(model, "nystrom")
    (layer,) = lora_layers(model)
    preconditioner = Preconditioner([layer])
    preconditioner.steps = 5
    _give_gradients([layer])
    given = layer.A.grad.clone()  # type: ignore[union-attr]
    preconditioner.step()
    assert not torch.equal(layer.A.grad, given)  # type: ignore[arg-type]


def test_normalised_preconditioner_has_frobenius_norm_one() -> None:
    gram = torch.stack([(F := torch.randn(6, 20, generator=torch.Generator().manual_seed(i))) @ F.T for i in range(5)])
    norms = torch.linalg.matrix_norm(damped_inverse(gram, damping=1e-6, normalize="frobenius"))
    torch.testing.assert_close(norms, torch.ones(5))


def test_one_singular_matrix_of_a_batch_takes_the_pseudo_inverse_alone() -> None:
    """λ = 0 and a zero Gram matrix: no factorisation; its neighbour still gets the exact inverse."""
    good = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
    inverse = damped_inverse(torch.stack([good, torch.zeros(3, 3)]), damping=0.0, normalize="none")
    torch.testing.assert_close(inverse[0], torch.diag(torch.tensor([1.0, 0.5, 0.25])))
    assert torch.equal(inverse[1], torch.zeros(3, 3))


@pytest.mark.parametrize("overflow", [float("inf"), float("nan")])
def test_a_gram_matrix_that_overflowed_is_told_by_its_own_inverse(overflow: float) -> None:
    """Not taken for the identity: its gradients become NaN and the run ends, those of its neighbours are to the bit."""
    factors = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    grams = factors @ factors.mT
    alone = damped_inverse(grams.clone(), damping=1e-6, normalize="frobenius")
    grams[1] = overflow
    found = damped_inverse(grams, damping=1e-6, normalize="frobenius")
    assert torch.isnan(found[1]).all()
    assert torch.equal(found[[0, 2]], alone[[0, 2]])


def test_a_factor_without_gradient_is_left_alone() -> None:
    model = one_linear_with_lora()
    randomize_factors(model)
    (layer,) = lora_layers(model)
    _give_gradients([layer])
    layer.A.grad = None
    Preconditioner([layer]).step()
    assert layer.A.grad is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no LoRA pair"):
        Preconditioner([])
    model = one_linear_with_lora()
    layers = lora_layers(model)
    _give_gradients(layers)
    with pytest.raises(ValueError, match="normalize: given 'l2', required 'frobenius' or 'none'"):
        Preconditioner(layers, normalize="l2").step()

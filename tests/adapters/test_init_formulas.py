"""The factors against float64 numpy, against the distributions they are drawn from (Kolmogorov-Smirnov) and PEFT's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from nora import streams
from nora.adapters import inits, lora_layers, nystrom_init_, snapshot_weights
from twins import one_linear_with_lora, tiny_opt, with_lora


def _draw(shape: tuple[int, int], seed: int, name: str) -> np.ndarray:
    """The standard normal draw of one module's init stream, as float64."""
    return torch.randn(*shape, generator=streams.generator(seed, "init", name)).double().numpy()


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("side", ["A", "B"])
def test_nystrom_is_the_papers_formula(side: str, divide: bool) -> None:
    """A = (ξ/s) G W or B = (ξ/s) W Ω, s = α/r = 2 (1 where not divided); the other factor is zero."""
    model = with_lora(tiny_opt(), rank=4, alpha=8)
    nystrom_init_(model, xi=0.3, side=side, divide_by_scaling=divide, seed=7)
    scale = 0.3 / (2.0 if divide else 1.0)
    for layer in lora_layers(model):
        W = layer.weight.double().numpy()
        A, B = layer.A.detach().double().numpy(), layer.B.detach().double().numpy()
        if side == "A":
            expected, read, zero = scale * _draw((4, W.shape[0]), 7, layer.name) @ W, A, B
        else:
            expected, read, zero = scale * W @ _draw((W.shape[1], 4), 7, layer.name), B, A
        assert np.linalg.norm(read - expected) <= 1e-6 * np.linalg.norm(expected)
        assert not zero.any()


def test_sides_agree_up_to_transposition() -> None:
    W = torch.randn(10, 14, generator=torch.Generator().manual_seed(0))
    kwargs = {"scaling": 2.0, "xi": 0.1}
    A = inits.load("nystrom").factors(W.T, 3, generator=torch.Generator().manual_seed(1), side="A", **kwargs).A
    G = torch.randn(3, 14, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(A, 0.05 * (W @ G.T).T)


def test_sketch_entries_have_the_papers_distribution() -> None:
    """A_ij ~ N(0, (ξ/s)² ‖W[:, j]‖²): independent where the columns of W are orthogonal, hence a KS test."""
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((96, 64)))
    lengths = np.linspace(0.1, 5.0, 64)
    W = torch.tensor(Q * lengths, dtype=torch.float32)
    A = inits.load("nystrom").factors(W, 64, scaling=4.0, xi=0.2, generator=streams.generator(0, "init", "m")).A
    standardised = A.double().numpy() / (0.2 / 4.0 * lengths)
    assert stats.kstest(standardised.ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("name", ["kaiming", "gaussian"])
def test_random_inits_have_pefts_distribution(name: str) -> None:
    """Two-sample KS over 16 modules of 8 × 64 entries each; B is zero in both."""
    module = inits.load(name)
    peft, ours = [], []
    for i in range(16):
        torch.manual_seed(i)
        from peft import LoraConfig, get_peft_model

        from twins import OneLinear

        config = LoraConfig(r=8, lora_alpha=8, target_modules=["proj"], init_lora_weights=module.PEFT_INIT)
        (layer,) = lora_layers(get_peft_model(OneLinear(16, 64), config))  # type: ignore[arg-type]
        peft.append(layer.A.detach().numpy().ravel())
        A, B = module.factors(layer.weight, 8, scaling=1.0, generator=streams.generator(i, "init", "m"))
        ours.append(A.numpy().ravel())
        assert not B.any() and not layer.B.any()
    assert stats.ks_2samp(np.concatenate(peft), np.concatenate(ours)).pvalue > 1e-3
    assert np.std(np.concatenate(ours)) == pytest.approx(1 / 8 if name == "gaussian" else 1 / np.sqrt(3 * 64), rel=0.03)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_moving_inits_are_pefts(name: str) -> None:
    """Our formula on the pretrained weight equals what PEFT wrote, up to the free sign of each component."""
    model = tiny_opt()
    pretrained = snapshot_weights(model, {"q_proj", "v_proj"})
    for layer in lora_layers(with_lora(model, init=inits.load(name).PEFT_INIT, rank=4, alpha=8)):
        A, B = inits.load(name).factors(pretrained[layer.name], 4, scaling=2.0, generator=torch.Generator())
        sign = torch.sign((A * layer.A).sum(dim=1))
        torch.testing.assert_close(sign[:, None] * A, layer.A.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(B * sign, layer.B.detach(), rtol=1e-4, atol=1e-5)


def test_pissa_is_the_best_rank_r_part() -> None:
    """Eckart-Young: s B A equals the truncated singular value decomposition, float64 numpy."""
    (layer,) = lora_layers(one_linear_with_lora(24, 32, init="pissa", rank=4, alpha=8))
    whole = (layer.weight + layer.scaling * layer.B @ layer.A).detach().double().numpy()
    U, S, Vh = np.linalg.svd(whole)
    best = U[:, :4] * S[:4] @ Vh[:4]
    np.testing.assert_allclose((layer.scaling * layer.B @ layer.A).detach().numpy(), best, atol=1e-4)

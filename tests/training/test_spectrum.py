"""Which singular values moved: against numpy's singular values, one matrix at a time, and a case known by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from nora.adapters import lora_layers, snapshot_weights
from nora.training.measures import moved_singular_values
from twins import one_linear_with_lora, randomize_factors, tiny_opt, with_lora


def test_equals_numpy() -> None:
    model = tiny_opt()
    pretrained = snapshot_weights(model, {"q_proj", "v_proj"})
    adapted = with_lora(model, rank=3, alpha=8)
    randomize_factors(adapted)
    layers = lora_layers(adapted)
    tally: Counter[int] = Counter()
    for layer in layers:
        W, A, B = (t.detach().double().numpy() for t in (pretrained[layer.name], layer.A, layer.B))
        before, after = (np.linalg.svd(M, compute_uv=False) for M in (W, W + 8 / 3 * B @ A))
        tally.update(np.argsort(-np.abs(after - before))[:3].tolist())
    found = moved_singular_values(layers, pretrained)
    assert found["counts"] == [tally[i] for i in range(32)]
    assert found["beyond"] == 0 and found["matrices"] == 4
    assert found["top_rank_share"] == sum(tally[i] for i in range(3)) / 12


def test_indices_beyond_those_shown_are_counted_apart() -> None:
    """W = diag(100, 99, …): raising entry 70 by 0.4 moves singular value 70 alone."""
    model = one_linear_with_lora(80, 80, rank=1, alpha=1)
    (layer,) = lora_layers(model)
    W = torch.diag(100.0 - torch.arange(80.0))
    layer.module.get_base_layer().weight.data.copy_(W)
    with torch.no_grad():
        layer.A.zero_()[0, 70] = 0.4
        layer.B.zero_()[70, 0] = 1.0
    found = moved_singular_values([layer], {"proj": W})
    assert found == {"counts": [0] * 64, "beyond": 1, "matrices": 1, "top_rank_share": 0.0}


def test_a_moved_base_counts_from_the_pretrained_weight() -> None:
    """PiSSA before any training has moved nothing: every change is rounding."""
    model = one_linear_with_lora(16, 16, init="pissa", rank=2, alpha=2)
    (layer,) = lora_layers(model)
    whole = (layer.weight + layer.scaling * layer.B @ layer.A).detach()
    with torch.no_grad():
        layer.B[:, 0] *= 1.5
    assert moved_singular_values([layer], {"proj": whole})["counts"][0] == 1

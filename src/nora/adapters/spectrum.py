"""Which singular values an adapter moves most (paper Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nora.adapters.layers import AdapterLayer

SHOWN = 64  # indices the figure shows


@torch.no_grad()
def moved_singular_values(layers: Sequence[AdapterLayer], pretrained: Mapping[str, Tensor]) -> dict[str, Any]:
    """Counts over the layers of the r indices whose sorted singular value changed most, float64.

    For each layer |σ_i(W + s B A) - σ_i(W pretrained)| over the full spectrum; the r largest add one to their index.
    ``counts`` covers the first 64 indices, ``beyond`` is the mass outside them, ``top_rank_share`` the share of the
    mass on the r leading indices.
    """
    width = max(min(layer.weight.shape) for layer in layers)
    counts = torch.zeros(width, dtype=torch.long)
    leading = 0
    for layer in layers:
        before = torch.linalg.svdvals(pretrained[layer.name].double())
        merged = layer.weight.double() + layer.scaling * layer.B.double() @ layer.A.double()
        moved = (torch.linalg.svdvals(merged) - before.to(merged.device)).abs()
        indices = moved.topk(layer.rank).indices.cpu()
        counts[indices] += 1
        leading += int((indices < layer.rank).sum())
    mass = int(counts.sum())
    return {
        "counts": counts[:SHOWN].tolist(),
        "beyond": int(counts[SHOWN:].sum()),
        "matrices": len(layers),
        "top_rank_share": leading / mass,
    }

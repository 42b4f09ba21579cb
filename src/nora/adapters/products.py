"""Products of a narrow float32 matrix with a weight of any floating dtype, without a float32 copy of the weight."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 2**22  # entries of the weight that are widened at a time: 16 MiB in float32


def left_product(G: Tensor, W: Tensor) -> Tensor:
    """G W [r, in] in float32 for G [r, out] float32 and W [out, in]; a weight of another dtype goes by column blocks.

    Every entry is one whole dot product, so the blocks change no order of summation.
    """
    if W.dtype == torch.float32:
        return G @ W
    product = torch.empty(G.shape[0], W.shape[1], dtype=torch.float32, device=W.device)
    width = max(1, _CHUNK // W.shape[0])
    for start in range(0, W.shape[1], width):
        torch.mm(G, W[:, start : start + width].to(torch.float32), out=product[:, start : start + width])
    return product


def right_product(W: Tensor, omega: Tensor) -> Tensor:
    """W Ω [out, r] in float32 for Ω [in, r] float32; as ``left_product``, by row blocks."""
    if W.dtype == torch.float32:
        return W @ omega
    product = torch.empty(W.shape[0], omega.shape[1], dtype=torch.float32, device=W.device)
    height = max(1, _CHUNK // W.shape[1])
    for start in range(0, W.shape[0], height):
        torch.mm(W[start : start + height].to(torch.float32), omega, out=product[start : start + height])
    return product

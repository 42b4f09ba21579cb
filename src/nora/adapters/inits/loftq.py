"""LoftQ (arXiv 2310.08659): the base is quantised, and the adapter takes the best low-rank part of what that lost."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nora.adapters.inits import Factors

PEFT_INIT = True
NAMED = "loftq"
MOVES_BASE = True
QUANTISES = True
REQUIRES = "bitsandbytes"
CHANGES_OUTPUT = True
OPTIONS = {"bits": 4, "iterations": 1}
ALLOWED = {"bits": (4, 8), "iterations": (1, 2, 3, 4, 5)}

_BLOCK = 64  # weights that share a scale, bitsandbytes' own default


def factors(
    weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator, bits: int = 4, iterations: int = 1
) -> Factors:
    """W - Q = U S Vᵀ; A = √(S/s) Vᵀ, B = U √(S/s) of the first r triplets, where Q quantises W less the low-rank part
    of the iteration before (algorithm 1). PEFT's own takes CUDA or XPU, and leaves s out."""
    del generator
    _, U, S, Vh = _alternated(weight, rank, bits, iterations)
    root = (S / scaling).sqrt()
    return Factors(root[:, None] * Vh, U * root)


def base(weight: Tensor, rank: int, *, bits: int = 4, iterations: int = 1) -> Tensor:
    """The quantised weight that stays, in float32."""
    return _alternated(weight, rank, bits, iterations)[0]


def _alternated(weight: Tensor, rank: int, bits: int, iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q [out, in], and U [out, r], S [r], Vᵀ [r, in] of W - Q after so many rounds of both steps."""
    if bits not in (4, 8):
        raise ValueError(f"bits: given {bits}, required 4 or 8")
    if iterations < 1:
        raise ValueError(f"iterations: given {iterations}, required at least 1")
    W = weight.to(torch.float32)
    low = torch.zeros_like(W)
    for _ in range(iterations):
        Q = _quantised(W - low, bits)
        U, S, Vh = torch.linalg.svd(W - Q, full_matrices=False)
        U, S, Vh = U[:, :rank], S[:rank], Vh[:rank]
        low = (U * S) @ Vh
    return Q, U, S, Vh


def _quantised(W: Tensor, bits: int) -> Tensor:
    """W through NF4, or int8 with a scale per row, and back."""
    from bitsandbytes import functional as bnb

    if bits == 8:
        q, scales, _ = bnb.int8_vectorwise_quant(W.to(torch.float16))
        return torch.as_tensor(bnb.int8_vectorwise_dequant(q, scales), dtype=torch.float32)
    # A block a row: on a CPU bitsandbytes 0.50 reads back other numbers where a block crosses the end of a row.
    flat = functional.pad(W.flatten(), (0, -W.numel() % _BLOCK)).reshape(-1, _BLOCK)
    q, state = bnb.quantize_4bit(flat, quant_type="nf4", blocksize=_BLOCK, compress_statistics=False)
    return torch.as_tensor(bnb.dequantize_4bit(q, state)).flatten()[: W.numel()].reshape(W.shape)

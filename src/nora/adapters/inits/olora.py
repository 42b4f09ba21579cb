"""OLoRA (arXiv 2406.01775): the leading part of a QR decomposition becomes the adapter."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors
from nora.adapters.layers import AdapterLayer

PEFT_INIT = "olora"
MOVES_BASE = True
OPTIONS: dict[str, object] = {}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator) -> Factors:
    """W = Q R; A = R[:rank], B = Q[:, :rank]; the base becomes W - s B A (not divided by s)."""
    del scaling, generator
    Q, R = torch.linalg.qr(weight.to(torch.float32))
    return Factors(R[:rank].contiguous(), Q[:, :rank].contiguous())


def make(layer: AdapterLayer, data: None) -> None:
    """PEFT's, on an adapter that it made with another start."""
    del data
    layer.module.olora_init(layer.adapter)

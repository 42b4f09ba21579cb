"""PiSSA by randomised subspace iteration (arXiv 2404.02948, "fast SVD"): PEFT's ``pissa_niter_K``."""

from __future__ import annotations

import torch
from torch import Tensor

from nora.adapters.inits import Factors, globally
from nora.adapters.layers import AdapterLayer

PEFT_INIT = True
NAMED = "pissa_niter_{niter}"
MOVES_BASE = True
OPTIONS = {"niter": 4}
TOLERANCE = 1e-4  # each iteration orthonormalises in float32: the last singular vectors carry several of its roundings


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator, niter: int = 4) -> Factors:
    """As PiSSA, with W ≈ U S Vᵀ of rank r by ``niter`` power iterations from a Gaussian draw."""
    with globally(generator):
        U, S, V = torch.svd_lowrank(weight.to(torch.float32), rank, niter=niter)
    root = (S / scaling).sqrt()
    return Factors(root[:, None] * V.T, U * root)


def make(layer: AdapterLayer, data: None, *, niter: int) -> None:
    """PEFT's."""
    del data
    layer.module.pissa_init(layer.adapter, f"pissa_niter_{niter}")

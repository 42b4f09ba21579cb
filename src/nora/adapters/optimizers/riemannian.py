"""Riemannian-preconditioned AdamW (arXiv 2402.02347). PEFT's: in its step, after the loop has clipped."""

from __future__ import annotations

from typing import Any

import torch
from peft.optimizers import create_riemannian_optimizer
from torch.optim import Optimizer

OPTIONS = {"damping": 1e-2}


def make(
    model: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, damping: float
) -> Optimizer:
    """AdamW on g_A ← (BᵀB + λI)⁻¹ g_A and g_B ← g_B (AAᵀ + λI)⁻¹ with λ = ``damping``."""
    return create_riemannian_optimizer(
        model, torch.optim.AdamW, lr=lr, reg=damping, betas=betas, eps=eps, weight_decay=weight_decay
    )

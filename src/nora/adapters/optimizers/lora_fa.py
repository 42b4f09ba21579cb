"""LoRA-FA's optimiser (arXiv 2308.03303), of ``method.variant=lora_fa``. PEFT's: AdamW on g_B (AAᵀ)⁻¹/s²."""

from __future__ import annotations

from typing import Any

from peft.optimizers import create_lorafa_optimizer
from torch.optim import Optimizer

OPTIONS: dict[str, object] = {}


def make(model: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> Optimizer:
    """PEFT's, with the protocol's moments."""
    config = model.peft_config[model.active_adapter]
    made: Optimizer = create_lorafa_optimizer(
        model, r=config.r, lora_alpha=config.lora_alpha, lr=lr, weight_decay=weight_decay
    )
    for group in made.param_groups:
        group |= {"betas": betas, "eps": eps}
    return made

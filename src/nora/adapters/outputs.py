"""What a model puts out with and without its adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn


def relative(difference: float, reference: float) -> float:
    """difference / reference, 0 / 0 being 0."""
    return difference / reference if reference > 0 else (0.0 if difference == 0 else float("inf"))


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    """The base model's forward, whether PEFT or diffusers put the adapters in; trainability is given back as it was."""
    tuned = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    enabled = [module for module in tuned if not module.disable_adapters]
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for module in enabled:
            module.enable_adapters(False)
        yield
    finally:
        for module in enabled:
            module.enable_adapters(True)
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)


def output_difference(model: Any, inputs: Mapping[str, Any], reference: Tensor | None = None) -> float:
    """Relative difference between the output with and without the adapter (or a given base output)."""
    was_training = model.training
    model.eval()
    try:
        output = _first_tensor(model(**inputs))
        if reference is None:
            with _without_adapters(model):
                reference = _first_tensor(model(**inputs))
    finally:
        model.train(was_training)
    return relative(torch.linalg.norm((output - reference).float()).item(), torch.linalg.norm(reference.float()).item())


def _first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]

"""What a model is measured in: eval mode, adapters off, no autocast; each is given back as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # device types whose autocast may be on


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is in the mode it was in (a frozen BatchNorm stays frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def full_precision() -> Iterator[None]:
    """Products in the tensors' own dtypes, under whatever autocast the caller is."""
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
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

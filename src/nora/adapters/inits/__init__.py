"""One file per way to start a LoRA adapter; the folder is the registry.

Each file is a module with

- ``PEFT_INIT``: what PEFT's ``LoraConfig.init_lora_weights`` is set to;
- ``MOVES_BASE``: whether PEFT changes the frozen weight (PiSSA, OLoRA) or leaves it alone;
- ``OPTIONS``: the names of its own settings, with their defaults;
- ``factors(weight, rank, *, scaling, generator, **options) -> Factors``: the formula, a pure function of the
  pretrained weight [out, in]. Where the base does not move, our factors are written over PEFT's; where it moves,
  PEFT made them and the formula only proves them.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """``A`` [rank, in] and ``B`` [out, rank] in float32; the layer adds scaling · B A to its weight."""

    A: Tensor
    B: Tensor


def standard_normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] of N(0, 1) in float32 on the CPU, whatever torch's default dtype and device are."""
    return torch.randn(rows, columns, generator=generator, dtype=torch.float32, device="cpu")


def zeros(rows: int, columns: int, device: torch.device) -> Tensor:
    """[rows, columns] of zeros in float32."""
    return torch.zeros(rows, columns, dtype=torch.float32, device=device)


def names() -> list[str]:
    """The inits there are: the file names of this folder."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The module of one init; ValueError for a name that is not a file of this folder."""
    if name not in names():
        raise ValueError(f"init: given {name!r}, required one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")

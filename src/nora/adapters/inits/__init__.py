"""One file per way to start a LoRA adapter; the folder is the registry.

Each file is a module with

- ``PEFT_INIT``: what PEFT's ``LoraConfig.init_lora_weights`` is set to when the adapter is made;
- ``MOVES_BASE``: whether the start takes s B A off the frozen weight, so that the output stays;
- ``OPTIONS``: its own settings with their defaults, a literal: the schema of what a config may say;
- ``factors(weight, rank, *, scaling, generator, **options) -> Factors``: the formula, a pure function of the
  pretrained weight [out, in]. Our factors are written over PEFT's;

and, where it needs them,

- ``make(layer, data, **options)``: PEFT's own function for this start, which writes the factors and moves the base. The
  formula then only proves them. It is called with torch's global generator at the layer's own stream;
- ``statistics(stream, rank, **options)``: what it needs of training rows: layer name → tensors by name.
  ``factors`` is then given them as ``data``;
- ``why_not(factors, weight, data, **options)``: what more is wrong with factors that are what ``factors`` says; None if
  nothing is;
- ``EVEN_RANK = True``: an odd rank has no such start; ``TIMES_RANK``: the singular vectors it takes, over the rank;
- ``TOLERANCE``: how far PEFT's factors may be off the formula, relative, where its arithmetic is coarser than 1e-5;
- ``CHANGES_OUTPUT = True``: the start is itself a step, the output is not the base's (LoRA-One); ``ROUNDS = True``:
  s B A is zero but for rounding (orthogonal);
- ``base(weight, rank, **options)``: the frozen weight that such a start leaves, where it is not W - s B A, with
  ``QUANTISES = True`` (LoftQ: no LoRA of the untouched base equals it); ``REQUIRES``: a package that it takes;
- ``ALLOWED``, a literal: option → the values it may have, where they are few;
- ``ONE_SIDED = True``: one factor is zero and the other may be of any size (``method.match``).

A file of another package (entry point ``nora.inits``) or of a folder (``--config-dir``) is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from nora import starts


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


@contextmanager
def globally(generator: torch.Generator) -> Iterator[None]:
    """torch's global generator at the beginning of ``generator``'s stream: for functions that take no generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        yield


def names() -> list[str]:
    """The inits there are."""
    return starts.names("inits")


def load(name: str) -> ModuleType:
    """The module of one init; ValueError for a name that is not there."""
    return starts.load("inits", name)

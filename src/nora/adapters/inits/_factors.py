"""The pair of factors an init returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Factors(NamedTuple):
    """``A`` [rank, in] and ``B`` [out, rank] in float32; the layer adds scaling · B A to its weight."""

    A: Tensor
    B: Tensor

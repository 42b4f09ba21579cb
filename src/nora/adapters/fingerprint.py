"""What the proof needs to know of a pretrained weight, without a copy of it: a hash, a norm and a small sketch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nora import streams
from nora.adapters.inits import standard_normal
from nora.adapters.layers import left_product, relative, weights_of

_ROWS = 8  # probes: the distance is estimated within a quarter, one standard deviation, of its value


@dataclass(frozen=True)
class Fingerprint:
    """A weight [out, in] as it was: 8 · in numbers instead of out · in."""

    shape: tuple[int, int]
    digest: str
    """SHA-256 of the bytes, in row order."""
    sketch: Tensor
    """S W [8, in] in float32, S standard normal."""
    norm: float
    """‖W‖, Frobenius."""

    def distance(self, weight: Tensor) -> float:
        """‖W now - W then‖ / ‖W then‖: 0 exactly where the bytes are the same, else E ‖S D‖² = 8 ‖D‖² gives it."""
        if tuple(weight.shape) != self.shape:
            return float("inf")
        if _digest(weight) == self.digest:
            return 0.0
        moved = torch.linalg.norm(_sketch(weight) - self.sketch.to(weight.device)).item() / _ROWS**0.5
        # Rounding may hide the difference in the sketch, but not in the hash.
        return relative(max(moved, torch.finfo(torch.float32).tiny), self.norm)


def fingerprint(weight: Tensor) -> Fingerprint:
    """The fingerprint of a weight [out, in]."""
    norm = torch.linalg.norm(weight.to(torch.float32)).item()
    return Fingerprint((weight.shape[0], weight.shape[1]), _digest(weight), _sketch(weight), norm)


@torch.no_grad()
def fingerprint_weights(model: nn.Module, names: set[str]) -> dict[str, Fingerprint]:
    """As ``snapshot_weights``, at a few hundredths of its memory: for ``prove_init(pretrained=…)`` of a large model."""
    return {name: fingerprint(weight) for name, weight in weights_of(model, names)}


def _sketch(weight: Tensor) -> Tensor:
    draw = streams.generator(0, "proof", f"fingerprint {weight.shape[0]}")
    return left_product(standard_normal(_ROWS, weight.shape[0], draw).to(weight.device), weight)


def _digest(weight: Tensor) -> str:
    """Row by row, so that a view (a transposed table) is never copied whole."""
    found = hashlib.sha256(str(weight.dtype).encode())
    for rows in weight.split(max(1, 2**22 // max(1, weight.shape[1]))):
        found.update(rows.contiguous().cpu().view(torch.uint8).numpy())
    return found.hexdigest()

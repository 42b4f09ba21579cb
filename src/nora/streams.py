"""Named random streams: (seed, stream, module) → torch.Generator.

Every draw of the project comes from a stream of its own, so that changing one thing (the init, say) never
changes another (the data order). Streams are drawn on the CPU, hence equal on every device and rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch


def stream_seed(seed: int, stream: str, module: str = "") -> int:
    """63-bit seed of the stream: the first 8 bytes of SHA-256 over ``seed``, ``stream`` and ``module``."""
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: given {seed}, required an integer from 0 to 2**32 - 1")
    digest = hashlib.sha256(f"{seed}\0{stream}\0{module}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, stream: str, module: str = "") -> torch.Generator:
    """A CPU generator for one named stream.

    ``stream`` is a word such as "init", "order", "dropout", "noise"; ``module`` is the canonical name of the
    module that draws (without any wrapper's prefix), empty where there is none.
    """
    return torch.Generator("cpu").manual_seed(stream_seed(seed, stream, module))


@contextmanager
def seeded(seed: int, stream: str, module: str = "") -> Iterator[None]:
    """torch's global generator set to the stream for a block, for libraries that take no generator, and put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, stream, module))
        yield

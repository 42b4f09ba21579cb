"""What a kind of run says of a run without making it: its name for people, its hours, its memory. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

# Parameters that every token passes through, from the models' own configs (tied heads counted once).
PARAMETERS = {"opt_1.3b": 1.316e9, "llama_7b": 6.738e9, "llama2_7b": 6.738e9, "gemma_7b": 8.538e9,
              "smollm2_135m_instruct": 0.1345e9}  # fmt: skip
# Hidden size and layers, for the activations that a backward pass keeps.
SHAPES = {"opt_1.3b": (2048, 24), "llama_7b": (4096, 32), "llama2_7b": (4096, 32), "gemma_7b": (3072, 28),
          "smollm2_135m_instruct": (576, 30)}  # fmt: skip
CARD, PEAK_FLOPS = "H100", 989e12  # what hours are predicted for, and its dense bf16 FLOP/s
MFU = 0.2  # the low utilisation of short sequences
FLOPS_PER_SECOND = MFU * PEAK_FLOPS
SETUP_SECONDS = 30.0
DECODING_SECONDS = 0.03  # per step of a batch of answers
# Bytes that a backward pass keeps per token, layer and hidden unit with LoRA on the paper's targets, measured on blocks
# of the true width (tests/kinds/test_kept_memory.py): float32, and 16 bits (autocast keeps some parts in float32).
KEPT_BYTES = {"opt": (52, 31), "llama": (75, 47), "gemma": (166, 100)}
_ARCHITECTURE = {"smollm": "llama"}  # by its blocks


class Label(NamedTuple):
    """What a run is: ``what`` was run ``on`` what; ``names`` are its tags."""

    what: str
    on: str
    names: tuple[str, ...]


class Work(NamedTuple):
    """What a run computes, whatever computes it. None: not known, or its kind does not count it."""

    trained_tokens: float | None = None
    scored_tokens: float | None = None
    flop: float | None = None
    """Of matrix products: 4N per trained token (the frozen weights have no gradient), 2N per scored one."""
    decoded_bytes: float | None = None
    """Read by decoding steps: the weights, once per step of a batch of answers."""


class Cost(NamedTuple):
    """An estimate: hours of one H100, GiB of peak device memory, and where each figure comes from. None: not known."""

    hours: float | None = None
    hours_source: str = "unknown: no like run has a record yet"
    memory_gib: float | None = None
    memory_source: str = "unknown"
    work: Work = Work()
    mfu: float | None = None
    """The share of the card's peak that ``hours`` are worked out with."""


DEVICE_GIB = 80.0
"""An H100 or A100, where no profile says otherwise."""
_FILLED = 0.9  # of a device's memory, at most: an estimate is no promise, and the allocator leaves gaps


class Fit(NamedTuple):
    """How a run fits a device: the part of a batch computed at once (None: all of it), its GiB by the estimate, where
    that figure comes from, and whether that is little enough."""

    micro_batch_size: int | None
    memory_gib: float | None
    source: str
    fits: bool


def fit(cost: Callable[[int | None], Cost], batch_size: int | None, device_gib: float) -> Fit:
    """The whole batch where it fits, else the largest of a half, a quarter, … that does; ``cost`` by that part,
    ``batch_size`` None where it may not be divided."""
    part, found = None, cost(None)
    while found.memory_gib is not None and found.memory_gib > _FILLED * device_gib and (part or batch_size or 1) > 1:
        part = (part or batch_size or 1) // 2
        found = cost(part)
    enough = found.memory_gib is None or found.memory_gib <= _FILLED * device_gib
    return Fit(part, found.memory_gib, found.memory_source, enough)


def kept_bytes(family: str, precision: str) -> int:
    """Per token, layer and hidden unit; of a family that was not measured the most."""
    wide, half = KEPT_BYTES.get(_ARCHITECTURE.get(family, family), KEPT_BYTES["gemma"])
    return wide if precision == "fp32" else half


def training_cost(
    model: str,
    dtype: str,
    precision: str,
    *,
    trained: float,
    scored: float,
    kept: float,
    decoded: float = 0.0,
    source: str,
) -> Cost:
    """Of a language model by name: ``trained`` and ``scored`` tokens of the whole run, ``kept`` tokens of which one
    step keeps the activations, and ``decoded`` steps of a batch of answers."""
    if model not in PARAMETERS:
        return Cost(work=Work(trained, scored))
    parameters, (hidden, layers) = PARAMETERS[model], SHAPES[model]
    width = {"float32": 4, "float64": 8}.get(dtype, 2)
    if width == 4 and precision != "fp32":
        width += 2  # autocast keeps its copy of each frozen weight for the backward pass
    flops = 4 * parameters * trained + 2 * parameters * scored
    memory = parameters * width + kept * hidden * layers * kept_bytes(model.split("_")[0].rstrip("2"), precision)
    return Cost(
        (flops / FLOPS_PER_SECOND + decoded * DECODING_SECONDS + SETUP_SECONDS) / 3600,
        source,
        memory / 2**30 + 1.0,
        "estimate: weights + kept activations (measured on blocks of the true width) + 1 GiB",
        Work(trained, scored, flops, decoded * parameters * {"float32": 4, "float64": 8}.get(dtype, 2)),
        MFU,
    )

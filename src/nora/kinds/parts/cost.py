"""What a kind of run says of a run without making it: its name for people, its hours, its memory. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

# Parameters that every token passes through, from the models' own configs (tied heads counted once).
PARAMETERS = {"opt_1.3b": 1.316e9, "llama_7b": 6.738e9, "llama2_7b": 6.738e9, "gemma_7b": 8.538e9}
# Hidden size and layers, for the activations that a backward pass keeps.
SHAPES = {"opt_1.3b": (2048, 24), "llama_7b": (4096, 32), "llama2_7b": (4096, 32), "gemma_7b": (3072, 28)}
FLOPS_PER_SECOND = 0.2 * 989e12  # an H100's bf16 peak at the low utilisation of short sequences
SETUP_SECONDS = 30.0
# Bytes that a backward pass keeps per token, layer and hidden unit with LoRA on the paper's targets, measured on blocks
# of the true width (tests/kinds/test_kept_memory.py): float32, and 16 bits (autocast keeps some parts in float32).
KEPT_BYTES = {"opt": (52, 31), "llama": (75, 47), "gemma": (166, 100)}


class Label(NamedTuple):
    """What a run is: ``what`` was run ``on`` what; ``names`` are its tags."""

    what: str
    on: str
    names: tuple[str, ...]


class Cost(NamedTuple):
    """An estimate: device hours, GiB of peak device memory, and where each figure comes from. None: not known."""

    hours: float | None = None
    hours_source: str = "unknown: no like run has a record yet"
    memory_gib: float | None = None
    memory_source: str = "unknown"


def kept_bytes(family: str, precision: str) -> int:
    """Per token, layer and hidden unit; of a family that was not measured the most."""
    wide, half = KEPT_BYTES.get(family, KEPT_BYTES["gemma"])
    return wide if precision == "fp32" else half


def training_cost(
    model: str,
    dtype: str,
    precision: str,
    *,
    trained: float,
    scored: float,
    kept: float,
    seconds: float = 0.0,
    source: str,
) -> Cost:
    """Of a language model by name: ``trained`` and ``scored`` tokens of the whole run, ``kept`` tokens of which one
    step keeps the activations, and ``seconds`` of other work. 4N FLOP per trained token (the frozen weights have no
    gradient), 2N per scored one."""
    if model not in PARAMETERS:
        return Cost()
    parameters, (hidden, layers) = PARAMETERS[model], SHAPES[model]
    width = {"float32": 4, "float64": 8}.get(dtype, 2)
    if width == 4 and precision != "fp32":
        width += 2  # autocast keeps its copy of each frozen weight for the backward pass
    flops = 4 * parameters * trained + 2 * parameters * scored
    memory = parameters * width + kept * hidden * layers * kept_bytes(model.split("_")[0].rstrip("2"), precision)
    return Cost(
        (flops / FLOPS_PER_SECOND + seconds + SETUP_SECONDS) / 3600,
        source,
        memory / 2**30 + 1.0,
        "estimate: weights + kept activations (measured on blocks of the true width) + 1 GiB",
    )

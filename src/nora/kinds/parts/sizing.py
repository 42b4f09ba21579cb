"""Out of memory: a table of what would fit and what to type for it. Nothing is made smaller by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nora.errors import RunFailed
from nora.kinds.parts.cost import kept_bytes

if TYPE_CHECKING:
    from torch import nn


_COPIES = 5  # of each trained parameter: itself, its gradient, AdamW's two moments, the best so far


@dataclass(frozen=True)
class Sizes:
    """What a run keeps in memory, bytes."""

    weights: int
    trained: int
    """The adapter with its gradients, its optimiser's moments and its best copy."""
    per_text: int
    """Activations of the longest training text."""
    per_cached_token: int
    """Keys and values of one token while answers are generated."""


def measure(model: nn.Module, *, longest: int, precision: str) -> Sizes:
    """The sizes of an adapted language model whose longest training text has ``longest`` tokens; an estimate."""
    config: Any = model.config
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    width = max((p.element_size() for p in frozen), default=4)
    kept = kept_bytes(config.model_type, precision)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Sizes(
        weights=sum(p.numel() * p.element_size() for p in frozen),
        trained=_COPIES * sum(p.numel() * p.element_size() for p in trained),
        per_text=longest * config.hidden_size * config.num_hidden_layers * kept,
        per_cached_token=2 * config.num_hidden_layers * heads * head_size * width,
    )


_FOR_ANSWERS = 0.25  # of the free memory: a beam search copies what it keeps, and a first pass has activations


def tokens_at_once(sizes: Sizes, free: int) -> int:
    """Tokens generated from at once, beams and new ones counted, by a GPU's free bytes."""
    return max(8, int(_FOR_ANSWERS * free) // sizes.per_cached_token)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}" if size >= 2**30 / 10 else f"{size / 2**30:.1e}"


def training_table(sizes: Sizes, batch_size: int, tried: int | None) -> str:
    """Memory (GiB) by micro-batch, and the setting to type; ``tried`` is the one that does not fit (None: all)."""
    lines = [f"{'micro-batch':>11} {'weights':>9} {'adapter+optimiser':>17} {'activations':>11} {'sum':>9}  setting"]
    for micro in sorted({*(2**k for k in range(batch_size.bit_length())), tried or batch_size}):
        kept = micro * sizes.per_text
        total = sizes.weights + sizes.trained + kept
        lines.append(
            f"{micro:11} {_gib(sizes.weights):>9} {_gib(sizes.trained):>17} {_gib(kept):>11} {_gib(total):>9}  "
            f"exec.micro_batch_size={micro}{'  (too large here)' if micro == (tried or batch_size) else ''}"
        )
    lines.append(f"estimates in GiB; the effective batch is never changed: it stays {batch_size} with each of them")
    return "\n".join(lines)


def answering_table(sizes: Sizes, *, tried: int) -> str:
    """Memory (GiB) by the tokens that are generated from at once, and the setting to type."""
    lines = [f"{'tokens':>8} {'weights':>9} {'keys and values':>15} {'sum':>9}  setting"]
    for tokens in (tried // 8, tried // 4, tried // 2, tried):
        cache = tokens * sizes.per_cached_token
        lines.append(
            f"{tokens:8} {_gib(sizes.weights):>9} {_gib(cache):>15} {_gib(sizes.weights + cache):>9}  "
            f"exec.generate_tokens={tokens}{'  (too large here)' if tokens == tried else ''}"
        )
    lines.append("estimates in GiB; how many prompts are answered at once changes rounding at most")
    return "\n".join(lines)


def _is_out_of_memory(error: BaseException) -> bool:
    said = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, a RuntimeError
        or "out of memory" in said
        or "DefaultCPUAllocator" in said
    )


@contextmanager
def explain_out_of_memory(what: str, table: str) -> Iterator[None]:
    """RunFailed with ``table`` where there is not enough memory for ``what``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        said = str(error).splitlines()
        reason = f" ({said[0]})" if said else ""
        raise RunFailed(f"out of memory while {what}{reason}\n{table}") from error

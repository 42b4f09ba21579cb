"""What a backward pass keeps, counted on blocks of the bases' true width, against the figures that ``nora plan`` uses.

Bytes of distinct storages that autograd saves in a forward pass of one and of two layers; the difference is a layer's.
Parameters and their casts are not counted. "16 bits" is bfloat16 weights under bfloat16 autocast.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

from nora.kinds import FinetuneSpec, compose_run
from nora.kinds.parts import bases
from nora.kinds.parts.cost import kept_bytes
from nora.training.objectives import hidden_states

_ROOT = Path(__file__).resolve().parents[1]
_TOKENS = 128
_BASES = {
    "opt": ["task=sst2"],
    "llama": ["model=llama_7b", "task=commonsense", "protocol=llm_adapters"],
    "gemma": ["model=gemma_7b", "task=gsm8k", "protocol=metamath"],
}
PRECISIONS = ("fp32", "16 bits")
TOLERANCE = 0.15


def _kept(spec: FinetuneSpec, layers: int, *, half: bool) -> int:
    """Bytes that autograd saves in one forward pass."""
    shape = {**(spec.model.architecture or {}), "num_hidden_layers": layers, "vocab_size": 128}
    model = bases.random_model(shape).requires_grad_(False).to(torch.bfloat16 if half else torch.float32)
    adapted = get_peft_model(model, bases.lora_config(spec.method, spec.model.targets)).train()
    own = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.arange(_TOKENS)[None] % 100 + 3
    mask = torch.ones(_TOKENS, _TOKENS, dtype=torch.bool).tril()[None, None]
    autocast = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden_states(adapted, input_ids=ids, position_ids=torch.arange(_TOKENS)[None], mask=mask)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def measure(family: str, precision: str) -> dict[str, Any]:
    """Measured and planned bytes per token, layer and hidden unit."""
    spec = compose_run(_ROOT, ["scale=paper", "method=nora", *_BASES[family]])[0]
    assert isinstance(spec, FinetuneSpec)
    one, two = (_kept(spec, layers, half=precision != "fp32") for layers in (1, 2))
    measured = (two - one) / _TOKENS / (spec.model.architecture or {})["hidden_size"]
    planned = kept_bytes(family, precision)
    return {"family": family, "precision": precision, "measured": measured, "planned": planned}


def run(*, quick: bool) -> dict[str, Any]:
    """Every family; ``quick`` OPT alone."""
    return {"rows": [measure(f, p) for f in (["opt"] if quick else _BASES) for p in PRECISIONS]}


def table(result: dict[str, Any]) -> str:
    """Measured against planned, and whether all are within 15 %."""
    lines = [f"{'base':8} {'precision':10} {'measured':>9} {'planned':>8}   bytes per token, layer and hidden unit"]
    for row in result["rows"]:
        off = row["planned"] / row["measured"] - 1
        lines.append(
            f"{row['family']:8} {row['precision']:10} {row['measured']:9.1f} {row['planned']:8} {100 * off:+7.1f} %"
        )
    worst = max(abs(row["planned"] / row["measured"] - 1) for row in result["rows"])
    verdict = "met" if worst <= TOLERANCE else "NOT met"
    return "\n".join([*lines, f"aim within {100 * TOLERANCE:.0f} %: {verdict}, {100 * worst:.1f} %"])

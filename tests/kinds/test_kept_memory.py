"""What a backward pass keeps, counted on blocks of the bases' true width, against the figures that `nora plan` uses."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from nora.kinds import FinetuneSpec, compose_run
from nora.kinds.parts import bases
from nora.kinds.parts.cost import kept_bytes
from nora.training.objectives import hidden_states

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 128
BASES = {
    "opt": ["task=sst2"],
    "llama": ["model=llama_7b", "task=commonsense", "protocol=llm_adapters"],
    "gemma": ["model=gemma_7b", "task=gsm8k", "protocol=metamath"],
}
SLOW = [("llama", "fp32"), ("llama", "16 bits"), ("gemma", "fp32"), ("gemma", "16 bits")]


def kept(spec: FinetuneSpec, layers: int, *, half: bool) -> int:
    """Bytes of distinct storages that autograd saves in one forward pass, parameters and their casts aside."""
    shape = {**(spec.model.architecture or {}), "num_hidden_layers": layers, "vocab_size": 128}
    model = bases.random_model(shape).requires_grad_(False).to(torch.bfloat16 if half else torch.float32)
    adapted = get_peft_model(model, bases.lora_config(spec.method, spec.model.targets)).train()
    own = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.arange(TOKENS)[None] % 100 + 3
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None]
    autocast = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden_states(adapted, input_ids=ids, position_ids=torch.arange(TOKENS)[None], mask=mask)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize(
    ("family", "precision"),
    [("opt", "fp32"), ("opt", "16 bits"), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_the_bytes_that_a_plan_counts_are_those_that_are_kept(family: str, precision: str) -> None:
    spec = compose_run(ROOT, ["scale=paper", "method=nora", *BASES[family]])[0]
    assert isinstance(spec, FinetuneSpec)
    one, two = (kept(spec, layers, half=precision != "fp32") for layers in (1, 2))
    width = (spec.model.architecture or {})["hidden_size"]
    measured = (two - one) / TOKENS / width
    print(f"{family}, {precision}: {measured:.1f} bytes per token, layer and hidden unit")
    assert kept_bytes(family, precision) == pytest.approx(measured, rel=0.15)

"""Tiny models of the real classes, and what tests compare them by."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM


def tiny_opt(seed: int = 0, *, dtype: torch.dtype = torch.float32, vocab: int = 64, dropout: float = 0.0) -> Any:
    """A 2-layer OPT of width 32 with seeded random weights, large enough that attention is not uniform."""
    config = OPTConfig(
        vocab_size=vocab,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=64,
        max_position_embeddings=128,
        dropout=dropout,
        attention_dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OPTForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval().requires_grad_(False)


def with_lora(model: nn.Module, *, init: Any = True, rank: int = 4, alpha: int = 8, **options: Any) -> PeftModel:
    """``model`` in PEFT's LoRA on q_proj and v_proj (or ``target_modules``), PEFT's draw seeded."""
    options.setdefault("target_modules", ["q_proj", "v_proj"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, init_lora_weights=init, **options)
        return get_peft_model(model, config).eval()  # type: ignore[arg-type]


class OneLinear(nn.Module):
    """A single linear map called ``proj``; a normal weight, square unless told otherwise."""

    def __init__(self, out_features: int = 32, in_features: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, out_features, bias=False)
        with torch.no_grad():
            self.proj.weight.copy_(
                torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed))
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def one_linear_with_lora(out_features: int = 32, in_features: int = 32, **options: Any) -> PeftModel:
    return with_lora(OneLinear(out_features, in_features), target_modules=["proj"], **options)


def randomize_factors(model: nn.Module, seed: int = 0) -> None:
    """Makes the adapter do something: every LoRA factor gets small normal entries."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bytes(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal bit for bit (NaN equals NaN)."""

    def raw(tensor: Tensor) -> Tensor:
        return tensor.contiguous().flatten().view(torch.uint8)

    return one.keys() == other.keys() and all(torch.equal(raw(one[key]), raw(other[key])) for key in one)


def tiny_llama(*, tied: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """A 1-layer Llama of width 16 with seeded weights; ``tied``: lm_head is the embedding table."""
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval().requires_grad_(False)

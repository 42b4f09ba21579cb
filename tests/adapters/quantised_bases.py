"""8- and 4-bit bases: the sketch is that of the dequantised weight. A program of its own, run by test_quantised.py:

python quantised_bases.py 8|4|nf4|fp4
"""

from __future__ import annotations

import sys
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from nora import streams
from nora.adapters import lora_layers, nystrom_init_, prove_init


def _quantised(kind: str) -> Any:
    """A CPU with AVX512-BF16 repacks "nf4" and "fp4" in an eval forward; "4", kept in bfloat16 storage, stays."""
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    if kind == "8":
        layer: Any = bnb.nn.Linear8bitLt(64, 128, bias=False, has_fp16_weights=False)
    elif kind == "4":
        layer = bnb.nn.Linear4bit(64, 128, bias=False, compute_dtype=torch.float32, quant_storage=torch.bfloat16)
    else:
        layer = bnb.nn.Linear4bit(64, 128, bias=False, compute_dtype=torch.float32, quant_type=kind)
    layer.load_state_dict({"weight": weight})
    net = nn.Sequential(layer).to("cuda" if torch.cuda.is_available() else "cpu")
    net.is_loaded_in_8bit, net.is_loaded_in_4bit = kind == "8", kind != "8"  # type: ignore[assignment]
    return net, weight


@torch.no_grad()
def _first_passes(net: nn.Module, x: torch.Tensor) -> None:
    """A forward pass in either mode; the second repacks 4-bit weights where the processor likes it."""
    net(x)
    net.eval()(x)


def the_sketch_reads_the_dequantised_weight(kind: str) -> None:
    net, weight = _quantised(kind)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).to(next(net.parameters()).device)
    _first_passes(net, x)
    model = get_peft_model(net, LoraConfig(r=4, lora_alpha=8, target_modules=["0"])).eval()
    (layer,) = lora_layers(model)
    held = layer.held_weight.data.clone()
    assert nystrom_init_(model, xi=0.1).passed
    assert torch.equal(layer.held_weight.data.view(torch.uint8), held.view(torch.uint8)), "untouched"
    read = layer.weight.float().cpu()
    assert 0 < torch.linalg.norm(read - weight) / torch.linalg.norm(weight) < 0.2, "dequantised, with its rounding"
    G = torch.randn(4, 128, generator=streams.generator(0, "init", "0"))
    torch.testing.assert_close(layer.A.detach().cpu(), 0.05 * G @ read, rtol=1e-4, atol=1e-5)
    assert prove_init(model, inputs={"input": x}).passed, "the output is the base's"


if __name__ == "__main__":
    the_sketch_reads_the_dequantised_weight(sys.argv[1])
    print("passed")

"""8- and 4-bit bases: the sketch is that of the dequantised weight; LoftQ. A program of its own, run by
test_quantised.py.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from nora import streams
from nora.adapters import factors_at_start, inits, lora_layers, nystrom_init_, prove_init, start_
from nora.testing import check_init

KINDS = ("8", "4", "nf4", "fp4")


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


def _nf4(weight: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """NF4 written out: blocks of 64 as they lie in memory, each over its largest entry, to the nearest of 16 values."""
    flat = weight.flatten()
    blocks = [flat[i : i + 64] for i in range(0, len(flat), 64)]
    read = [
        code[(block[:, None] / block.abs().max() - code).abs().argmin(dim=1)] * block.abs().max() for block in blocks
    ]
    return torch.cat(read).reshape(weight.shape)


def loftq_leaves_a_quantised_base_and_the_best_of_what_it_lost() -> None:
    check_init(inits.load("loftq"))
    for columns in (64, 96):  # a block of 64 crosses the ends of rows of 96
        W = 0.02 * torch.randn(128, columns, generator=torch.Generator().manual_seed(0))
        net = nn.Sequential(nn.Linear(columns, 128, bias=False))
        net[0].weight.data.copy_(W)
        x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
        model = get_peft_model(net, LoraConfig(r=4, lora_alpha=8, target_modules=["0"])).eval()
        report = start_(model, "loftq")
        assert report.passed, report.problems
        (layer,) = lora_layers(model)
        code = bnb.functional.get_4bit_type("nf4", device="cpu")
        Q = _nf4(W, code)
        torch.testing.assert_close(layer.weight, Q, rtol=0, atol=1e-7)
        U, S, Vh = torch.linalg.svd((W - Q).double(), full_matrices=False)
        best = (U[:, :4] * S[:4]) @ Vh[:4]
        torch.testing.assert_close(2 * (layer.B @ layer.A).double(), best, rtol=0, atol=1e-7)
        lost = torch.linalg.norm((model(x) - x @ W.T).detach())
        assert 0 < lost < torch.linalg.norm(x @ Q.T - x @ W.T), "nearer to the pretrained output than the base alone"
        assert not prove_init(model, report.start, inputs={"input": x}).passed, "not without the pretrained weights"
        known = {"0": W}
        assert prove_init(model, report.start, inputs={"input": x}, pretrained=known, base_output=x @ W.T).passed
        with torch.no_grad():
            layer.held_weight[0, 0] += 1e-3
        assert not prove_init(model, report.start, pretrained=known).passed, "a base that is not the quantised one"
        try:
            factors_at_start(model)
        except ValueError as error:
            assert "loftq" in str(error).lower()
        else:
            raise AssertionError("an adapter of a quantised base was called one of the untouched base")
    more = [inits.load("loftq").factors(W, 4, scaling=1.0, generator=None, iterations=n) for n in (1, 5)]
    left = [inits.load("loftq").base(W, 4, iterations=n) + f.B @ f.A - W for n, f in zip((1, 5), more, strict=True)]
    assert torch.linalg.norm(left[1]) < torch.linalg.norm(left[0]), "rounds bring it nearer"


if __name__ == "__main__":
    for kind in KINDS:
        the_sketch_reads_the_dequantised_weight(kind)
        print(kind, "passed")
    loftq_leaves_a_quantised_base_and_the_best_of_what_it_lost()
    print("loftq passed")

"""What a start costs: the Nyström sketch beside a bare product W·Ω, QR (OLoRA), SVD and fast SVD (PiSSA).

One layer of each distinct shape of the paper's models, random normal weights, fp32 (LLaMA-7B also in bfloat16). "nora"
is ``initialize_`` on a live PEFT layer with the drawing of Ω, which is timed apart; "with proof" is ``nystrom_init_``.
A start is float32 whatever the weight is: "W·Ω, float32" is the product of a bfloat16 weight widened beforehand, what a
start of that precision costs at least (the bfloat16 product rounds each entry to three digits: 1.7e-3 off, where the
proof allows 1e-5; torch's CPU kernel has no float32 output. G in two bfloat16 parts, with a second pass by ``addmm``
for what the first one rounded away, is 4.5e-6 off and was no faster: 18 ms against 16, the bare product 4.4).
On a CPU only the reference and the smaller shapes are decomposed. Interleaved, medians; the largest SVD once.

Then every start and variant there is, on one layer of OPT-1.3B: from a bare layer to a started adapter, PEFT making
it included ("kaiming" is that and no more). Data-driven starts look at the same four batches of 64 random inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from nora import starts, streams
from nora.adapters import initialize_, inits, lora_layers, nystrom_init_
from nora.verbs.machine import load_program

_HERE = Path(__file__).parent
_timing, _shapes = load_program(_HERE / "_timing.py"), load_program(_HERE / "_shapes.py")
_LARGEST = 2048 * 2048  # entries of a weight that is decomposed on a CPU, the reference case aside


def _cases() -> list[tuple[str, int, int, int, int, torch.dtype]]:
    """(name, out, in, rank, count in the model, dtype); the reference case first."""
    cases = [("reference", 4096, 4096, 32, 1, torch.float32)]
    for name, (shapes, rank) in _shapes.MODELS.items():
        cases += [(name, out, inn, rank, count, torch.float32) for (out, inn), count in shapes.items()]
    return [*cases, ("LLaMA-7B", 4096, 4096, 32, 96, torch.bfloat16)]


def _model(out: int, inn: int, rank: int, dtype: torch.dtype, device: torch.device) -> Any:
    with torch.device(device):
        layer = nn.Linear(inn, out, bias=False)
        nn.init.normal_(layer.weight, std=0.02)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
        return get_peft_model(nn.Sequential(layer.to(dtype)), config)  # type: ignore[arg-type]


def _error(model: Any) -> float:
    """The factor written against the formula in float64."""
    (layer,) = lora_layers(model)
    G = torch.randn(layer.rank, layer.weight.shape[0], generator=streams.generator(0, "init", layer.name))
    expected = 0.1 * G.to(layer.weight.device).double() @ layer.weight.double()
    return float(torch.linalg.norm(layer.A.detach() - expected) / torch.linalg.norm(expected))


@torch.no_grad()
def _case(
    out: int, inn: int, rank: int, dtype: torch.dtype, device: torch.device, rounds: int, decompose: bool
) -> dict[str, dict[str, float]]:
    model = _model(out, inn, rank, dtype, device)
    (layer,) = lora_layers(model)
    W: Tensor = layer.weight
    omega = torch.randn(inn, rank, device=device, dtype=dtype)

    def draw() -> Tensor:
        return torch.randn(rank, out, generator=streams.generator(0, "init", layer.name)).to(device)

    methods: dict[str, Callable[[], object]] = {
        "W·Ω": lambda: W @ omega,
        "drawing Ω": draw,
        "nora": lambda: initialize_(model, "nystrom", xi=0.1),
        "nora with proof": lambda: nystrom_init_(model, xi=0.1, overwrite=True),
    }
    if dtype != torch.float32:
        wide, wide_omega = W.float(), omega.float()
        methods["W·Ω, float32"] = lambda: wide @ wide_omega
    slow: dict[str, Callable[[], object]] = {
        "QR (OLoRA)": lambda: torch.linalg.qr(W.float()),
        "fast SVD, niter 4": lambda: torch.svd_lowrank(W.float(), rank, niter=4),
        "SVD (PiSSA)": lambda: torch.linalg.svd(W.float(), full_matrices=False),
    }
    ms = _timing.interleaved(methods, rounds=rounds, device=device)
    for name, method in slow.items() if decompose else ():
        methods[name] = method
        few = 1 if name.startswith("SVD") and W.numel() > _LARGEST else 5
        ms |= _timing.interleaved({name: method}, rounds=few, device=device)
    peaks = {name: _timing.peak_mib(method, device) for name, method in methods.items() if not name.startswith("SVD")}
    initialize_(model, "nystrom", xi=0.1)
    result: dict[str, dict[str, float]] = {
        name: {"ms": value, "ratio": value / ms["W·Ω"]} for name, value in ms.items()
    }
    for name, peak in peaks.items():
        result[name]["peak_mib"] = peak
    result["nora"]["error"] = _error(model)
    result["nora"]["ratio_without_drawing"] = (ms["nora"] - ms["drawing Ω"]) / ms["W·Ω"]
    return result


def _started(layer: nn.Linear, init: str, settings: dict[str, Any], rank: int, batches: list[Tensor]) -> object:
    """A copy of the layer with an adapter started by ``init``."""
    module = inits.load(init)
    named = module.PEFT_INIT.format(**module.OPTIONS) if isinstance(module.PEFT_INIT, str) else module.PEFT_INIT
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], init_lora_weights=named, **settings)
    copy = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta").to_empty(
        device=layer.weight.device
    )
    copy.weight.data.copy_(layer.weight.data)
    with streams.seeded(0, f"peft {init}"):
        model = get_peft_model(nn.Sequential(copy), config)  # type: ignore[arg-type]
    data = {"batches": batches, "loss": lambda m, x: m(x).square().mean()} if hasattr(module, "statistics") else {}
    return initialize_(model, init, **data)  # type: ignore[arg-type]


def _every_start(side: int, rank: int, device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds, ratio to PEFT's own Kaiming and peak memory of every start, and of the variants from Kaiming."""
    layer = nn.Linear(side, side, bias=False, device=device)
    nn.init.normal_(layer.weight, std=0.02)
    batches = [torch.randn(64, side, device=device) for _ in range(4)]
    named: list[tuple[str, str, dict[str, Any]]] = [("kaiming", "kaiming", {})]
    named += [(init, init, {}) for init in inits.names() if init != "kaiming" and not starts.missing("inits", init)]
    named += [(name, "kaiming", starts.load("variants", name).PEFT) for name in starts.names("variants")]
    methods = {name: partial(_started, layer, init, settings, rank, batches) for name, init, settings in named}
    ms = _timing.interleaved(methods, rounds=rounds, device=device)
    return {
        name: {"ms": ms[name], "ratio": ms[name] / ms["kaiming"], "peak_mib": _timing.peak_mib(method, device)}
        for name, method in methods.items()
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Every case on every device there is; ``quick``: Stable Diffusion's small shapes, three rounds."""
    cases = [c for c in _cases() if not quick or c[1] * c[2] <= 640 * 768]
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "rounds": 3 if quick else 9,
        "cases": [],
        "starts": [],
    }
    result["clock"] = {device.type: _timing.clock(device)[0] for device in _timing.devices()}
    for device in _timing.devices():
        for name, out, inn, rank, count, dtype in cases:
            decompose = name == "reference" or out * inn <= _LARGEST or device.type != "cpu"
            methods = _case(out, inn, rank, dtype, device, result["rounds"], decompose)
            result["cases"].append(
                {
                    "model": name, "shape": [out, inn], "rank": rank, "count": count, "device": device.type,
                    "dtype": str(dtype).removeprefix("torch."), "methods": methods,
                }
            )  # fmt: skip
        side, rank = (128, 8) if quick else (2048, 8)
        found = _every_start(side, rank, device, 1 if quick else 3)
        result["starts"].append({"shape": [side, side], "rank": rank, "device": device.type, "methods": found})
    return result


_AIMS = {"SVD (PiSSA)": 700, "QR (OLoRA)": 100, "fast SVD, niter 4": 7}


def _aims(methods: dict[str, dict[str, float]]) -> list[str]:
    """At 4096 x 4096, rank 32, on a CPU: at most 1.3 times a bare product, the decompositions so many times slower."""
    ours = methods["nora"]["ratio_without_drawing"]
    lines = [f"aim: at most 1.3 x W·Ω, drawing apart: {'met' if ours <= 1.3 else 'NOT met'}, {ours:.2f}"]
    return lines + [
        _timing.aim(f"faster than {name}", factor, methods[name]["ms"] / methods["nora"]["ms"])
        for name, factor in _AIMS.items()
    ]


def _half_aims(methods: dict[str, dict[str, float]]) -> list[str]:
    """A bfloat16 weight on a CPU: at most 1.5 times a float32 product, 3 times with the proof."""
    product = methods["W·Ω, float32"]["ms"]
    return [
        f"aim: {name} at most {most} x W·Ω, float32, of a bfloat16 weight: "
        f"{'met' if methods[name]['ms'] <= most * product else 'NOT met'}, {methods[name]['ms'] / product:.2f}"
        for name, most in (("nora", 1.5), ("nora with proof", 3.0))
    ]


def table(result: dict[str, Any]) -> str:
    """Milliseconds per layer and per model, ratio to the bare product, peak memory, error against float64."""
    lines = [
        f"{'layer':34} {'device':6} {'method':18} {'ms':>10} {'x W·Ω':>8} {'model, s':>9} {'peak MiB':>9} {'error':>8}"
    ]
    for case in result["cases"]:
        out, inn = case["shape"]
        label = f"{case['model']} {out}x{inn} r={case['rank']} {case['dtype']}"
        for name, m in case["methods"].items():
            peak = f"{m['peak_mib']:9.1f}" if "peak_mib" in m else f"{'–':>9}"
            error = f"{m['error']:8.1e}" if "error" in m else f"{'–':>8}"
            total = m["ms"] * case["count"] / 1000
            lines.append(
                f"{label:34} {case['device']:6} {name:18} {m['ms']:10.2f} {m['ratio']:8.2f} {total:9.2f} {peak} {error}"
            )
        without = case["methods"]["nora"]["ratio_without_drawing"]
        lines.append(f"{label:34} {case['device']:6} {'nora less drawing':18} {'':10} {without:8.2f}")
    for case in result["cases"]:
        if case["model"] == "reference" and case["device"] == "cpu":
            lines += _aims(case["methods"])
        if "W·Ω, float32" in case["methods"] and case["device"] == "cpu":
            lines += _half_aims(case["methods"])
    for case in result.get("starts", ()):  # none before they were measured
        lines.append(f"\n{'every start, ' + 'x'.join(map(str, case['shape'])) + ' r=' + str(case['rank']):34}")
        lines += [
            f"{'':34} {case['device']:6} {name:18} {m['ms']:10.2f} {m['ratio']:8.2f} {'':9} {m['peak_mib']:9.1f}"
            for name, m in sorted(case["methods"].items(), key=lambda item: item[1]["ms"])
        ]
    how = f"{result['threads']} threads, {result['clock']['cpu']} on the CPU"
    lines.append(f"{how}, interleaved, medians of {result['rounds']} (decompositions 5, the largest SVD 1)")
    return "\n".join(lines)

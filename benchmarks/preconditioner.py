"""The LoRA preconditioner, batched by rank, beside PEFT's loop (pinv) and an inverse loop, at the paper's true shapes.

All three rewrite the same gradients with the same damping (1e-2), no normaliser, in fp32, and are compared with
float64. The inverse part alone is timed apart. Random factors and gradients; interleaved, medians.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft.optimizers.riemannian import _RiemannianPreconditioner
from torch import Tensor, nn

from nora.adapters.preconditioner import Preconditioner, damped_inverse
from nora.verbs.machine import load_program

_DAMPING = 1e-2


_HERE = Path(__file__).parent
_timing, _shapes = load_program(_HERE / "_timing.py"), load_program(_HERE / "_shapes.py")

_CASES: dict[str, tuple[dict[tuple[int, int], int], int]] = {
    "48 modules r=8 d=2048 (OPT-1.3B)": _shapes.MODELS["OPT-1.3B"],
    "160 modules r=32 d=1024": ({(1024, 1024): 160}, 32),
    "SD 1.4, 128 modules r=4": _shapes.MODELS["SD 1.4"],
    "LLaMA-7B, 160 modules r=32": _shapes.MODELS["LLaMA-7B"],
    "Gemma-7B, 196 modules r=32": _shapes.MODELS["Gemma-7B"],
}


def _pairs(shapes: dict[tuple[int, int], int], rank: int, device: torch.device) -> list[Any]:
    draw = torch.Generator(device).manual_seed(0)
    pairs = []
    for (out, inn), count in shapes.items():
        for _ in range(count):
            A, B = (
                nn.Parameter(torch.randn(s, generator=draw, device=device) / s[i] ** 0.5)
                for s, i in (((rank, inn), 1), ((out, rank), 0))
            )
            for factor in (A, B):
                factor.grad = torch.randn(factor.shape, generator=draw, device=device)
            pairs.append(SimpleNamespace(A=A, B=B, rank=rank))
    return pairs


@torch.no_grad()
def _inverse_loop(pairs: list[Any]) -> None:
    """One ``torch.inverse`` per factor, as the paper's released code does it."""
    eye = _DAMPING * torch.eye(pairs[0].rank, device=pairs[0].A.device)
    for pair in pairs:
        left, right = torch.inverse(pair.B.T @ pair.B + eye), torch.inverse(pair.A @ pair.A.T + eye)
        pair.A.grad.copy_(left @ pair.A.grad)
        pair.B.grad.copy_(pair.B.grad @ right)


@torch.no_grad()
def _error(pairs: list[Any], step: Callable[[], None]) -> float:
    """Largest relative difference from float64 over the first and the last pair; the gradients are put back."""
    watched, kept = (pairs[0], pairs[-1]), [p.A.grad.clone() for p in pairs] + [p.B.grad.clone() for p in pairs]
    expected: list[Tensor] = []
    for pair in watched:
        A, B = pair.A.double(), pair.B.double()
        eye = _DAMPING * torch.eye(pair.rank, dtype=torch.float64, device=A.device)
        expected += [torch.linalg.solve(B.T @ B + eye, pair.A.grad.double())]
        expected += [pair.B.grad.double() @ torch.linalg.inv(A @ A.T + eye)]
    step()
    read = [g for pair in watched for g in (pair.A.grad, pair.B.grad)]
    worst = max(
        float(torch.linalg.norm(r - e) / torch.linalg.norm(e)) for r, e in zip(read, expected, strict=True)
    )  # fmt: skip
    for pair, gA, gB in zip(pairs, kept[: len(pairs)], kept[len(pairs) :], strict=True):
        pair.A.grad.copy_(gA)
        pair.B.grad.copy_(gB)
    return worst


def _case(shapes: dict[tuple[int, int], int], rank: int, device: torch.device, rounds: int) -> dict[str, Any]:
    pairs = _pairs(shapes, rank, device)
    ours = Preconditioner(pairs, damping=_DAMPING, normalize="none")
    ours.steps = 1
    peft = _RiemannianPreconditioner([(p.A, p.B) for p in pairs], reg=_DAMPING)
    methods: dict[str, Callable[[], None]] = {
        "nora": ours.step,
        "PEFT pinv loop": peft.step,
        "inverse loop": lambda: _inverse_loop(pairs),
    }
    errors = {name: _error(pairs, method) for name, method in methods.items()}
    peaks = {name: _timing.peak_mib(method, device) for name, method in methods.items()}
    total = _timing.interleaved(methods, rounds=rounds, device=device)
    with torch.no_grad():
        grams = torch.stack([p.A @ p.A.T for p in pairs] + [p.B.T @ p.B for p in pairs])
        eye = _DAMPING * torch.eye(rank, device=device)
        inverses: dict[str, Callable[[], object]] = {
            "nora": lambda: damped_inverse(grams, damping=_DAMPING, normalize="none"),
            "PEFT pinv loop": lambda: [torch.linalg.pinv(g + eye) for g in grams],
            "inverse loop": lambda: [torch.inverse(g + eye) for g in grams],
        }
        inverse = _timing.interleaved(inverses, rounds=rounds, device=device)
    return {
        name: {"ms": total[name], "inverse_ms": inverse[name], "peak_mib": peaks[name], "error": errors[name]}
        for name in methods
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Every case on every device there is; ``quick``: the two smallest, three rounds."""
    cases = dict(list(_CASES.items())[:2]) if quick else _CASES
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "rounds": 3 if quick else 9, "cases": []}
    result["clock"] = {device.type: _timing.clock(device)[0] for device in _timing.devices()}
    for device in _timing.devices():
        for name, (shapes, rank) in cases.items():
            methods = _case(shapes, rank, device, result["rounds"])
            parameters = _shapes.trainable(shapes, rank)
            result["cases"].append({"case": name, "device": device.type, "parameters": parameters, "methods": methods})
    return result


def _aims(case: dict[str, Any]) -> list[str]:
    """What was aimed at against PEFT's loop: 2x end to end and 15x for the inverses on a CPU, 50x on an accelerator."""
    ours, peft = case["methods"]["nora"], case["methods"]["PEFT pinv loop"]
    ratio, inverse = peft["ms"] / ours["ms"], peft["inverse_ms"] / ours["inverse_ms"]
    where = f"PEFT's loop, {case['case']}, {case['device']}"
    if case["device"] != "cpu":
        return [_timing.aim(where, 50, ratio)]
    if case["case"] not in list(_CASES)[:2]:
        return []
    return [_timing.aim(where, 2, ratio), _timing.aim(f"{where}, inverses alone", 15, inverse)]


def table(result: dict[str, Any]) -> str:
    """Milliseconds per step, ratio to nora, the inverse part alone, peak memory, error against float64."""
    lines = [
        f"{'case':36} {'device':6} {'method':15} {'ms':>9} {'x nora':>7} {'inverse ms':>11} {'x nora':>7} "
        f"{'peak MiB':>9} {'error':>8}"
    ]
    for case in result["cases"]:
        reference = case["methods"]["nora"]
        for name, m in case["methods"].items():
            lines.append(
                f"{case['case']:36} {case['device']:6} {name:15} {m['ms']:9.2f} {m['ms'] / reference['ms']:7.2f} "
                f"{m['inverse_ms']:11.3f} {m['inverse_ms'] / reference['inverse_ms']:7.1f} {m['peak_mib']:9.1f} "
                f"{m['error']:8.1e}"
            )
    for case in result["cases"]:
        lines += _aims(case)
    how = f"{result['threads']} threads, {result['clock']['cpu']} on the CPU"
    lines.append(f"{how}, interleaved, medians of {result['rounds']}")
    return "\n".join(lines)

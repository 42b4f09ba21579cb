"""The init proof: what the forward pass reads is what the formula gives, and the output is the base's.

In the paper's released code the sketch lands on an attribute that no forward pass reads, and is taken from a
weight that is replaced afterwards. Nothing there notices. Here every run measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nora import streams
from nora.adapters import inits
from nora.adapters.initialize import InitMark, expected_factors, init_mark
from nora.adapters.layers import AdapterLayer, lora_layers, output_difference, relative

_EXACT_WIDTH = 1024  # up to here ‖Wᵀ W‖ is computed; a larger Gram matrix would cost far more than the init it proves
_PROBES = 64
TOLERANCE = 1e-5  # relative difference between the factors read and the factors recomputed
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ModuleProof:
    """One layer's measurement."""

    name: str
    relative_difference: float
    """‖(A, B) read - (A, B) recomputed‖ / ‖(A, B) recomputed‖, Frobenius."""
    base_relative_difference: float
    """‖W in the layer - W it should be‖ / ‖W pretrained‖ (0 where no pretrained copy was given)."""
    rho: float
    """in · ‖A Wᵀ‖² / (‖A‖² ‖W‖²): 1 for an A that knows nothing of W (side B: out · ‖Bᵀ W‖² / (‖B‖² ‖W‖²))."""
    rho_sketch: float
    """What a Gaussian sketch of this W has in expectation: in · ‖Wᵀ W‖² / ‖W‖⁴ (about 2 for a Gaussian square W).
    Computed where a side of W is at most 1024; above, estimated from 64 Gaussian probes (within 18 % at worst, one
    standard deviation; far less for a spectrum without one dominant value)."""
    scale_ratio: float
    """Root-mean-square entry of the sketched factor over that of a Kaiming A, 1/√(3 in)."""


@dataclass(frozen=True)
class InitReport:
    """The proof of one adapter's start. ``passed`` is False, never raised, where any part fails."""

    init: str
    passed: bool
    problems: tuple[str, ...]
    modules: tuple[ModuleProof, ...]
    output_difference: float | None
    """‖output - base output‖ / ‖base output‖ on the given inputs, None without inputs."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _align_signs(read: Tensor, expected: Tensor) -> Tensor:
    """Rows of ``expected`` times ±1 so that each points as ``read`` does (singular vectors have no sign)."""
    sign = torch.sign((read * expected).sum(dim=1, keepdim=True))
    return torch.where(sign == 0, torch.ones_like(sign), sign)


def _gram_norm_squared(W: Tensor) -> float:
    """‖Wᵀ W‖²_F of W [out, in], from E ‖W Wᵀ g‖² = ‖W Wᵀ‖² over Gaussian probes g where W is large."""
    if min(W.shape) > _EXACT_WIDTH:
        draw = streams.generator(0, "proof", f"{W.shape[0]}x{W.shape[1]}")
        probes = torch.randn(_PROBES, W.shape[0], generator=draw).to(W.device)
        return torch.linalg.norm((probes @ W) @ W.T).item() ** 2 / _PROBES
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    return torch.linalg.norm(gram).item() ** 2


def measure_layer(layer: AdapterLayer, mark: InitMark, pretrained: Tensor | None) -> ModuleProof:
    """Recomputes one layer's init from the pretrained weight [out, in] and compares it with what the layer holds."""
    module = inits.load(mark.init)
    held = layer.weight.to(torch.float32)
    W = held if pretrained is None else pretrained.to(held.device, torch.float32)
    A_read, B_read = layer.A.detach().flatten(1).float(), layer.B.detach().flatten(1).float()
    if module.MOVES_BASE and pretrained is None:
        W = held + layer.scaling * B_read @ A_read  # the best that can be said without a copy of the original
    A, B = expected_factors(layer, W, mark)
    if module.MOVES_BASE:
        sign = _align_signs(A_read, A)
        A, B = A * sign, B * sign.T
    difference = torch.hypot(torch.linalg.norm(A_read - A), torch.linalg.norm(B_read - B)).item()
    reference = torch.hypot(torch.linalg.norm(A), torch.linalg.norm(B)).item()
    should_hold = W - layer.scaling * B_read @ A_read if module.MOVES_BASE else W
    base_difference = torch.linalg.norm(held - should_hold).item()

    norm_W = torch.linalg.norm(W).item()
    out_features, in_features = W.shape
    if torch.any(A_read):
        rho = relative(
            in_features * torch.linalg.norm(A_read @ W.T).item() ** 2, torch.linalg.norm(A_read).item() ** 2 * norm_W**2
        )
        width, factor = in_features, A_read
    else:
        rho = relative(
            out_features * torch.linalg.norm(B_read.T @ W).item() ** 2,
            torch.linalg.norm(B_read).item() ** 2 * norm_W**2,
        )
        width, factor = out_features, B_read
    return ModuleProof(
        name=layer.name,
        relative_difference=relative(difference, reference),
        base_relative_difference=relative(base_difference, norm_W),
        rho=rho,
        rho_sketch=relative(width * _gram_norm_squared(W), norm_W**4),
        scale_ratio=factor.square().mean().sqrt().item() * (3 * in_features) ** 0.5,
    )


def _output_tolerance(layers: Sequence[AdapterLayer], moves_base: bool) -> float:
    """How far the output may be off, relative: not at all, but where the arithmetic of the adapter itself rounds."""
    # A DoRA layer scales its output by magnitude / ‖W‖: 1 at the start, which half precision does not keep to the bit.
    dtypes = [layer.held_weight.dtype for layer in layers if layer.module.use_dora[layer.adapter]]
    squares = [torch.finfo(dtype).eps ** 2 for dtype in dtypes if dtype in _HALF]
    return max(TOLERANCE if moves_base else 0.0, sum(squares) ** 0.5)  # independent roundings, one a layer


@torch.no_grad()
def prove_init(
    model: nn.Module,
    *,
    init: str = "nystrom",
    inputs: Mapping[str, Any] | None = None,
    adapter_name: str = "default",
    pretrained: Mapping[str, Tensor] | None = None,
    base_output: Tensor | None = None,
) -> InitReport:
    """Measures whether the adapter's start is the named init of the pretrained weights, before any training step.

    The settings (ξ, side, seed) are those ``nystrom_init_`` left on the live layers; a layer without them does not
    pass. ``inputs`` are the keyword arguments of one forward pass: the output must equal the base's, exactly where
    the base is untouched, to 1e-5 relative where the init moves it, and to √layers times the machine precision where
    DoRA adapters are on a float16 or bfloat16 base (PEFT's own arithmetic rounds there). ``pretrained`` maps
    canonical module names to the weights [out, in] before anything touched them; without it the layer's present
    weight is taken. ``base_output`` is the untouched model's output, needed where the adapter moves the base. Only a
    model without LoRA layers raises (ValueError); a failed proof is returned.
    """
    problems: list[str] = []
    modules: list[ModuleProof] = []
    moves_base = inits.load(init).MOVES_BASE
    layers = lora_layers(model, adapter_name)
    for layer in layers:
        mark = init_mark(layer)
        if mark is None:
            problems.append(f"{layer.name}: nothing says how it was started (no init was applied to this live model)")
            continue
        if mark.init != init:
            problems.append(f"{layer.name}: started by {mark.init}, asked for {init}")
        if pretrained is not None and layer.name not in pretrained:
            problems.append(f"{layer.name}: no pretrained weight of that name to compare with")
            continue
        proof = measure_layer(layer, mark, None if pretrained is None else pretrained[layer.name])
        modules.append(proof)
        if not proof.relative_difference <= TOLERANCE:
            problems.append(
                f"{layer.name}: the factors the forward pass reads differ from {mark.init} of the pretrained weight "
                f"by {proof.relative_difference:.2e} (allowed {TOLERANCE:.0e})"
            )
        if not proof.base_relative_difference <= (TOLERANCE if moves_base else 0.0):
            problems.append(f"{layer.name}: the frozen weight is off by {proof.base_relative_difference:.2e}")
    difference = None
    if inputs is not None:
        difference = output_difference(model, inputs, base_output)
        allowed = _output_tolerance(layers, moves_base)
        if not difference <= allowed:
            problems.append(f"the output differs from the base model's by {difference:.2e} (allowed {allowed:.0e})")
    return InitReport(init, not problems, tuple(problems), tuple(modules), difference)

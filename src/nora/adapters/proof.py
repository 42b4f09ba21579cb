"""The init proof: what the forward pass reads is what the formula gives, and the output is the base's.

In the paper's released code the sketch lands on an attribute that no forward pass reads, and is taken from a
weight that is replaced afterwards. Nothing there notices. Here every run measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from nora import streams
from nora.adapters import inits
from nora.adapters.fingerprint import Fingerprint
from nora.adapters.initialize import Start, expected_factors, moved_weight, rounded
from nora.adapters.inits import Factors
from nora.adapters.layers import AdapterLayer, is_repacked, lora_layers, relative
from nora.adapters.moved import moved_base
from nora.adapters.surroundings import evaluating, full_precision, without_adapters

_EXACT_WIDTH = 1024  # up to here ‖Wᵀ W‖ is computed; a larger Gram matrix would cost far more than the init it proves
_PROBES = 64
_APART = 1e-3
TOLERANCE = 1e-5  # relative difference between the factors read and the factors recomputed
_HALF = (torch.float16, torch.bfloat16)
NYSTROM = Start("nystrom")


@dataclass(frozen=True)
class ModuleProof:
    """One layer's measurement."""

    name: str
    relative_difference: float
    """‖(A, B) read - (A, B) recomputed‖ / ‖(A, B) recomputed‖, Frobenius."""
    base_relative_difference: float
    """‖W in the layer - W it should be‖ / ‖W pretrained‖ (0 where no pretrained copy was given)."""
    rho: float | None
    """in · ‖A Wᵀ‖² / (‖A‖² ‖W‖²): 1 for an A that knows nothing of W (side B: out · ‖Bᵀ W‖² / (‖B‖² ‖W‖²)). For a
    data-driven start W is what it is made from: the gradient, or a root of the covariance of the layer's inputs.
    None, as ``rho_sketch``, in the report of ``nystrom_init_``: they cost more than the start itself."""
    rho_sketch: float | None
    """What a Gaussian sketch of this W has in expectation: in · ‖Wᵀ W‖² / ‖W‖⁴ (about 2 for a Gaussian square W).
    Computed where a side of W is at most 1024; above, estimated from 64 Gaussian probes (within 18 % at worst, one
    standard deviation; far less for a spectrum without one dominant value)."""
    scale_ratio: float
    """Root-mean-square entry of the sketched factor over that of a Kaiming A, 1/√(3 in)."""


@dataclass(frozen=True)
class InitReport:
    """The proof of one adapter's start. ``passed`` is False, never raised, where any part fails."""

    start: Start
    passed: bool
    problems: tuple[str, ...]
    modules: tuple[ModuleProof, ...]
    output_difference: float | None
    """‖output - base output‖ / ‖base output‖ on the given inputs, None without inputs."""

    @property
    def init(self) -> str:
        return self.start.init

    def to_dict(self) -> dict[str, Any]:
        """What a record keeps: everything but the settings, which the record's own spec holds."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "start"}
        return {"init": self.init, **found, "modules": tuple(asdict(module) for module in self.modules)}


def _align_signs(read: Tensor, expected: Tensor) -> Tensor:
    """Rows of ``expected`` times ±1 so that each points as ``read`` does (singular vectors have no sign)."""
    sign = torch.sign((read * expected).sum(dim=1, keepdim=True))
    return torch.where(sign == 0, torch.ones_like(sign), sign)


def _aligned(read: Factors, expected: Factors) -> Factors:
    """``expected`` up to what a singular value decomposition leaves open: the sign of each triplet, and the rotation
    among those whose values do not stand apart (by less than 0.1 %)."""
    sign = _align_signs(read.A, expected.A)
    signed = Factors(expected.A * sign, expected.B * sign.T)
    sizes = torch.linalg.norm(expected.A, dim=1) * torch.linalg.norm(expected.B, dim=0)
    near = (sizes[:, None] - sizes).abs() <= _APART * torch.maximum(sizes[:, None], sizes)
    if not bool((near & ~torch.eye(len(near), dtype=torch.bool, device=near.device)).any()):
        return signed
    overlap = read.A.double() @ expected.A.double().T + read.B.double().T @ expected.B.double()
    U, _, Vh = torch.linalg.svd(torch.where(near, overlap, 0.0))  # the nearest rotation, block by block
    Q = (U @ Vh).float()
    return Factors(Q @ expected.A, expected.B @ Q.T)


def _gram_norm_squared(W: Tensor) -> float:
    """‖Wᵀ W‖²_F of W [out, in], from E ‖W Wᵀ g‖² = ‖W Wᵀ‖² over Gaussian probes g where W is large."""
    if min(W.shape) > _EXACT_WIDTH:
        draw = streams.generator(0, "proof", f"{W.shape[0]}x{W.shape[1]}")
        probes = torch.randn(_PROBES, W.shape[0], generator=draw).to(W.device)
        return torch.linalg.norm((probes @ W) @ W.T).item() ** 2 / _PROBES
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    return torch.linalg.norm(gram).item() ** 2


def _tolerance(layer: AdapterLayer, *, moves_base: bool) -> float:
    """Relative difference allowed between the factors read and recomputed: that of one rounding where they are rounded.

    PEFT rounds the factors of a start that moves the base as it rounds the base, also where they end in float32. A
    4-bit weight that bitsandbytes repacked after the start has had its scales rounded to bfloat16.
    """
    dtypes = [dtype for dtype in (layer.A.dtype, layer.B.dtype) if dtype in _HALF]
    if is_repacked(layer.held_weight):
        dtypes.append(torch.bfloat16)
    if moves_base and layer.held_weight.dtype in _HALF:
        dtypes.append(layer.held_weight.dtype)
    return max([TOLERANCE, *(torch.finfo(dtype).eps / 2 for dtype in dtypes)])


def _distance(layer: AdapterLayer, expected: Factors) -> tuple[float, float]:
    """‖(A, B) read - expected‖ and ‖expected‖, Frobenius, with ``expected`` rounded as the adapter's dtype rounds."""
    A, B = (factor.float() for factor in rounded(layer, expected))
    A_read, B_read = _read(layer)
    difference = torch.hypot(torch.linalg.norm(A_read - A), torch.linalg.norm(B_read - B)).item()
    return difference, torch.hypot(torch.linalg.norm(A), torch.linalg.norm(B)).item()


def _read(layer: AdapterLayer) -> Factors:
    """A [r, in] and B [out, r] as the forward pass reads them, in float32."""
    return Factors(layer.A.detach().flatten(1).float(), layer.B.detach().flatten(1).float())


def _scale_ratio(layer: AdapterLayer) -> float:
    A, B = _read(layer)
    sketched = A if torch.any(A) else B
    return sketched.square().mean().sqrt().item() * (3 * A.shape[1]) ** 0.5


def measure_layer(layer: AdapterLayer, start: Start, pretrained: Tensor | Fingerprint | None) -> ModuleProof:
    """Recomputes one layer's init from the pretrained weight [out, in] and compares it with what the layer holds."""
    moves = inits.load(start.init).MOVES_BASE
    held = layer.weight.to(torch.float32)
    A_read, B_read = _read(layer)
    # Without the original itself, the best that can be said of a base that the start moved.
    restored = held + layer.scaling * B_read @ A_read if moves else held
    W = restored
    if isinstance(pretrained, Tensor):
        W = layer.part_of_weight(pretrained).to(held.device, torch.float32)
    expected = expected_factors(layer, W, start)
    if moves:
        expected = _aligned(Factors(A_read, B_read), expected)
    difference, reference = _distance(layer, expected)

    norm_W = torch.linalg.norm(W).item()
    if isinstance(pretrained, Fingerprint):
        base_difference = pretrained.distance(restored if moves else layer.whole_weight)
    else:
        should_hold = moved_weight(layer, W, Factors(A_read, B_read), start) if moves else W
        base_difference = relative(torch.linalg.norm(held - should_hold).item(), norm_W)

    rho, rho_sketch = _signature(Factors(A_read, B_read), _made_from(layer, W, start))
    return ModuleProof(
        name=layer.name,
        relative_difference=relative(difference, reference),
        base_relative_difference=base_difference,
        rho=rho,
        rho_sketch=rho_sketch,
        scale_ratio=_scale_ratio(layer),
    )


def _made_from(layer: AdapterLayer, W: Tensor, start: Start) -> Tensor:
    """The matrix a start is made from, with ``in`` columns: the weight, the gradient, or a root of the inputs'
    covariance."""
    data = {} if start.statistics is None else start.statistics[layer.name]
    if "gradient" in data:
        return data["gradient"].to(W.device, torch.float32)
    if "covariance" in data:
        values, vectors = torch.linalg.eigh(data["covariance"].to(W.device, torch.float64))
        return (values.clamp_min(0).sqrt()[:, None] * vectors.T).float()
    return W


def _signature(read: Factors, M: Tensor) -> tuple[float, float]:
    """ρ of the factors and of a Gaussian sketch, as ``ModuleProof`` says, of the matrix M a start is made from."""
    rows, columns = M.shape
    norm = torch.linalg.norm(M).item()
    if torch.any(read.A):
        product, factor, width = torch.linalg.norm(read.A @ M.T), torch.linalg.norm(read.A), columns
    elif len(read.B) == rows:
        product, factor, width = torch.linalg.norm(read.B.T @ M), torch.linalg.norm(read.B), rows
    else:
        return 1.0, 1.0
    rho = relative(width * product.item() ** 2, factor.item() ** 2 * norm**2)
    return rho, relative(width * _gram_norm_squared(M), norm**4)


def _measure_factors(layer: AdapterLayer, start: Start) -> ModuleProof:
    """The factors alone, against the formula on the present weight in its own dtype: one product with it."""
    difference, reference = _distance(layer, expected_factors(layer, layer.weight, start))
    return ModuleProof(layer.name, relative(difference, reference), 0.0, None, None, _scale_ratio(layer))


def _why_dead(layer: AdapterLayer) -> str | None:
    """Why training cannot move this start, with what to do; None where it can."""
    if layer.why_not_read is not None:
        return layer.why_not_read
    zero = [name for name, factor in (("A", layer.A), ("B", layer.B)) if not factor.any()]
    if len(zero) == 2:
        return "A = B = 0 is a saddle that no step leaves; start it from a weight that is not zero"
    held = (("A", layer.parameter_A), ("B", layer.parameter_B))
    frozen = [name for name, parameter in held if not parameter.requires_grad]
    if len(frozen) == 2 or set(zero) & set(frozen):
        return (
            f"factor {' and '.join(frozen)} is frozen and the adapter cannot leave zero; make it trainable "
            "(requires_grad), with a config whose init_lora_weights is True"
        )
    return None


def _problems(layer: AdapterLayer, start: Start, proof: ModuleProof, *, ready: bool = True) -> list[str]:
    """What this layer's measurement does not allow; ``ready``: the adapter must be one that training can move."""
    found = []
    module, held = inits.load(start.init), layer.held_weight.dtype
    moves_base = module.MOVES_BASE
    allowed = max(_tolerance(layer, moves_base=moves_base), getattr(module, "TOLERANCE", 0.0))
    if hasattr(module, "why_not"):
        data = {} if start.statistics is None else {"data": start.statistics[layer.name]}
        reason = module.why_not(_read(layer), layer.weight, **data, **start.options)
        found += [] if reason is None else [f"{layer.name}: {start.init}: {reason}"]
    if not proof.relative_difference <= allowed:
        found.append(
            f"{layer.name}: the factors the forward pass reads differ from {start.init} of the pretrained weight "
            f"by {proof.relative_difference:.2e} (allowed {allowed:.0e})"
        )
    # A moved base in half precision is rounded after the move, and so are the factors that make up for it.
    off = torch.finfo(held).eps if held in _HALF else TOLERANCE
    if not proof.base_relative_difference <= (off if moves_base else 0.0):
        found.append(f"{layer.name}: the frozen weight is off by {proof.base_relative_difference:.2e}")
    dead = _why_dead(layer) if ready else None
    if dead is not None:
        found.append(f"{layer.name}: {dead}")
    return found


def output_difference(model: Any, inputs: Mapping[str, Any], reference: Tensor | None = None) -> float:
    """Relative difference between the output with and without the adapter (or a given base output)."""
    with evaluating(model):
        output = _first_tensor(model(**inputs))
        if reference is None:
            with without_adapters(model):
                reference = _first_tensor(model(**inputs))
    return relative(torch.linalg.norm((output - reference).float()).item(), torch.linalg.norm(reference.float()).item())


def _first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _output_tolerance(layers: Sequence[AdapterLayer], moves_base: bool, *, rounds: bool) -> float:
    """How far the output may be off, relative: not at all, but where the arithmetic of the adapter itself rounds."""
    # A DoRA layer scales its output by magnitude / ‖W‖: 1 at the start, which half precision does not keep to the bit.
    # A start that moves a half-precision base is rounded twice: the base that is left, and the factors taken from it.
    roundings = [(layer.held_weight.dtype, 2 * moves_base + layer.module.use_dora[layer.adapter]) for layer in layers]
    squares = [times * torch.finfo(dtype).eps ** 2 for dtype, times in roundings if dtype in _HALF]
    return max(TOLERANCE if rounds else 0.0, sum(squares) ** 0.5)  # independent roundings


@torch.no_grad()
def prove_factors(model: nn.Module, start: Start, *, adapter_name: str = "default") -> InitReport:
    """The part of ``prove_init`` that costs no more than the start: the factors are the formula's and can learn."""
    layers = lora_layers(model, adapter_name)
    with full_precision():
        modules = tuple(_measure_factors(layer, start) for layer in layers)
    # An adapter that is not active yet is not trained yet either: whether it will be is for ``prove_init`` to say.
    problems = tuple(
        problem
        for layer, proof in zip(layers, modules, strict=True)
        for problem in _problems(layer, start, proof, ready=layer.why_not_read is None)
    )
    return InitReport(start, not problems, problems, modules, None)


@torch.no_grad()
def prove_init(
    model: nn.Module,
    start: Start = NYSTROM,
    *,
    inputs: Mapping[str, Any] | None = None,
    adapter_name: str = "default",
    pretrained: Mapping[str, Tensor] | Mapping[str, Fingerprint] | None = None,
    base_output: Tensor | None = None,
) -> InitReport:
    """Measures whether the adapter's start is the one described, of the pretrained weights, before any training step.

    ``start`` is what ``initialize_`` returned, ``report.start`` of ``nystrom_init_``; left out, ``nystrom_init_`` with
    ξ = 0.1 and seed 0. The factors must equal the formula's to 1e-5 relative, rounded as the adapter's dtype rounds
    (half precision: to half a unit in the last place). ``inputs`` are the keyword arguments of one forward pass: the
    output must equal the base's, exactly where the base is untouched, to 1e-5 relative where the init moves it, and to
    √layers times the machine precision where DoRA adapters are on a float16 or bfloat16 base (√2 times that where the
    init moves such a base): PEFT's own arithmetic rounds there. ``pretrained`` maps canonical module names to the
    weights [out, in] before anything touched them, or to their fingerprints; without it the layer's present weight is
    taken, and a layer whose weight some other start has moved does not pass. ``base_output`` is the untouched model's
    output, needed where the adapter moves the base. A start that cannot learn (A = B = 0, its zero factor frozen, the
    adapter not active) does not pass. Autocast is
    off inside, modes are given back. Only a model without LoRA layers raises (ValueError); a failed proof is returned.
    """
    problems: list[str] = []
    modules: list[ModuleProof] = []
    moves_base = inits.load(start.init).MOVES_BASE
    layers = lora_layers(model, adapter_name)
    base = moved_base(model)
    difference = None
    with full_precision():
        for layer in layers:
            original = None if pretrained is None else pretrained.get(layer.pretrained_name)
            if pretrained is not None and original is None:
                problems.append(f"{layer.name}: no pretrained weight of that name to compare with")
                continue
            moved = base.why(layer, own_start=moves_base)
            if pretrained is None and moved is not None:
                problems.append(moved)
            modules.append(measure_layer(layer, start, original))
            problems += _problems(layer, start, modules[-1])
        if inputs is not None:
            difference = output_difference(model, inputs, base_output)
            moved_first = getattr(inits.load(start.init), "CHANGES_OUTPUT", False)
            rounds = moves_base or getattr(inits.load(start.init), "ROUNDS", False)
            allowed = math.inf if moved_first else _output_tolerance(layers, moves_base, rounds=rounds)
            if moved_first and difference == 0.0:
                problems.append(f"the output is the base model's, and {start.init} is itself a step away from it")
            if not difference <= allowed:
                problems.append(f"the output differs from the base model's by {difference:.2e} (allowed {allowed:.0e})")
    return InitReport(start, not problems, tuple(problems), tuple(modules), difference)

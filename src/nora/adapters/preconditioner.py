"""Normalised scaled-GD preconditioning of LoRA gradients: NoRA+ and LoRA-P (paper Alg. 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from nora.adapters.layers import AdapterLayer, adapter_layers, check_untied, once_each
from nora.adapters.surroundings import full_precision


def trainable_pairs(model: nn.Module) -> list[AdapterLayer]:
    """Every LoRA layer, of any adapter, whose two factors are both trained; sorted by name.

    Raises ValueError where only one factor of a pair is trained (its gradient has no partner to be scaled with), where
    two layers share a factor, and where there is no pair at all.
    """
    pairs = []
    for layer in adapter_layers(model):
        trained = layer.parameter_A.requires_grad, layer.parameter_B.requires_grad
        if not any(trained):
            continue
        if not all(trained):
            frozen = "B" if trained[0] else "A"
            raise ValueError(
                f"{layer.name}: factor {frozen} of adapter {layer.adapter!r} is frozen and its partner is trained; "
                "the preconditioner scales each factor by its partner and needs both trained, or neither"
            )
        pairs.append(layer)
    if not pairs:
        raise ValueError(
            "the model has no trainable LoRA pair, so there is nothing to precondition; wrap it with "
            "peft.get_peft_model(model, LoraConfig(...)) first, and check which parameters require gradients"
        )
    check_untied(once_each(pairs))  # a tied head's part of the gradient is scaled as the embedding's is, by the same P
    return pairs


_NARROW = (torch.bfloat16, torch.float16)
_LANES = 16  # float32 numbers of one vector register: a product with fewer columns leaves the rest of it idle
_LONG = 1024  # rows from which on folding pays
NORMALIZERS = ("frobenius", "none")
INVERSES = ("cholesky", "pinv")


def damped_inverse(gram: Tensor, *, damping: float, normalize: str, inverse: str = "cholesky") -> Tensor:
    """P = (G + λI)⁻¹ for a batch of Gram matrices [n, r, r], divided by ‖P‖_F where ``normalize`` is "frobenius".

    λ (``damping``) is added to the Gram matrix. ``inverse="cholesky"``: where a factorisation breaks down (rounding,
    λ too small) that matrix alone goes through the hermitian pseudo-inverse (on an accelerator: is taken for I).
    ``inverse="pinv"``: (G + λI)⁺ for all, the over-parametrised form, meant for λ = 0.
    """
    if normalize not in NORMALIZERS:
        raise ValueError(f"normalize: given {normalize!r}, required 'frobenius' or 'none'")
    if inverse not in INVERSES:
        raise ValueError(f"inverse: given {inverse!r}, required 'cholesky' or 'pinv'")
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    if inverse == "pinv":
        P = torch.linalg.pinv(gram + damping * eye, hermitian=True)
    else:
        factor, info = torch.linalg.cholesky_ex(gram + damping * eye)
        on_cpu = gram.device.type == "cpu"  # on an accelerator the check would wait for the stream
        if not on_cpu or info.any():
            # What a broken factorisation leaves may have a zero on its diagonal, which cholesky_inverse refuses.
            factor = torch.where((info != 0)[:, None, None], eye, factor)
        P = torch.cholesky_inverse(factor)
        if on_cpu and info.any():
            finite = torch.isfinite(gram).all(-1).all(-1)
            broken = (info != 0) & finite
            P[broken] = torch.linalg.pinv(gram[broken] + damping * eye, hermitian=True)
            P[~finite] = torch.nan  # its factor has overflowed: the gradients say so, those of the others stay
    if normalize == "none":
        return P
    # A zero Gram matrix without damping has a zero pseudo-inverse: it stays zero, its gradient is zero anyway.
    return P / torch.linalg.matrix_norm(P, keepdim=True).clamp_min(torch.finfo(P.dtype).tiny)


class _Pair(NamedTuple):
    """The two factors of a layer and their gradients, whole; A flattens to [r, in], B to [out, r]."""

    A: Tensor
    B: Tensor
    grad_A: Tensor | None
    grad_B: Tensor | None


def whole_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor (FSDP 2, tensor parallelism) gathered; every other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _whole_factors(layer: AdapterLayer) -> tuple[Tensor, Tensor]:
    """The layer's A and B, gathered. ValueError where its parameters are pieces that nothing can gather."""
    A, B = layer.parameter_A.detach(), layer.parameter_B.detach()
    for factor in (A, B):
        if factor.dim() < 2 or factor.numel() == 0:
            raise ValueError(
                f"{layer.name}: given a factor of shape {tuple(factor.shape)}, a piece of it (FSDP 1, DeepSpeed's "
                "ZeRO 3), required whole factors or FSDP 2's (fully_shard), which can be gathered"
            )
    return layer.part_A(whole_tensor(A)), layer.part_B(whole_tensor(B))


class _Gathered:
    """The gradients of some parameters, whole; each is gathered once, for a mixture's experts share one."""

    def __init__(self) -> None:
        self._whole: dict[nn.Parameter, Tensor] = {}

    def pair(self, layer: AdapterLayer) -> _Pair:
        grad_A, grad_B = self._of(layer.parameter_A), self._of(layer.parameter_B)
        return _Pair(
            *_whole_factors(layer),
            None if grad_A is None else layer.part_A(grad_A),
            None if grad_B is None else layer.part_B(grad_B),
        )

    def _of(self, parameter: nn.Parameter) -> Tensor | None:
        if parameter.grad is None or not isinstance(parameter.grad, DTensor):
            return parameter.grad
        if parameter not in self._whole:
            self._whole[parameter] = parameter.grad.full_tensor()
        return self._whole[parameter]

    def scatter(self) -> None:
        """Gives each process its part of the gathered gradients back; no communication, every one holds the whole."""
        for parameter, gradient in self._whole.items():
            held: Any = parameter.grad
            mesh = held.device_mesh
            whole = DTensor.from_local(gradient, mesh, [Replicate()] * mesh.ndim, run_check=False)
            held.copy_(whole.redistribute(placements=held.placements))


class _One(NamedTuple):
    """A gradient to scale: ``flat`` is ``P @ flat`` (``left``) or ``flat @ P`` afterwards."""

    gradient: Tensor
    P: Tensor
    left: bool


def _wide(tensor: Tensor) -> Tensor:
    """As a matrix in at least float32."""
    if tensor.dim() != 2:
        tensor = tensor.flatten(1)
    return tensor.to(torch.float32) if tensor.dtype in _NARROW else tensor


def scale_one_by_one(jobs: Sequence[_One]) -> None:
    """Rewrites each gradient in place, one product each: the fastest on a CPU, where a batch has to be copied."""
    for gradient, P, left in jobs:
        wide = _wide(gradient)
        product = P @ wide if left else wide @ P
        gradient.copy_(product if gradient.dim() == 2 else product.reshape(gradient.shape))


def scale_batched(jobs: Sequence[_One]) -> None:
    """The same in one product per shape: the fastest on an accelerator, where every launch costs."""
    groups: dict[tuple[object, ...], list[_One]] = defaultdict(list)
    for job in jobs:
        groups[job.gradient.shape, job.gradient.dtype, job.left].append(job)
    for group in groups.values():
        wide, P = torch.stack([_wide(job.gradient) for job in group]), torch.stack([job.P for job in group])
        scaled = P @ wide if group[0].left else wide @ P
        gradients = [job.gradient for job in group]
        torch._foreach_copy_(gradients, [x.reshape(g.shape) for x, g in zip(scaled.unbind(), gradients, strict=True)])


def _grams(factors: Sequence[Tensor]) -> Tensor:
    """F Fᵀ for each F [r, n_i], stacked to [len, r, r], in at least float32."""
    if factors[0].device.type == "cpu" or len({f.shape for f in factors}) > 1:
        return torch.stack([f @ f.T for f in factors])
    stacked = torch.stack(list(factors))
    return stacked @ stacked.mT


def _folds(tall: Sequence[Tensor]) -> int:
    """How many rows of each matrix [n, r] go side by side into a register: 1 but on a CPU where all are long."""
    k = max(1, _LANES // tall[0].shape[1])
    return k if all(_folds_by(t, k) for t in tall) else 1


def _folds_by(tall: Tensor, k: int) -> bool:
    on_cpu, matrix = tall.device.type == "cpu", tall.dim() == 2 and tall.is_contiguous()
    return on_cpu and matrix and len(tall) >= _LONG and len(tall) % k == 0


def _tall_grams(tall: Sequence[Tensor]) -> Tensor:
    """Fᵀ F for each F [n_i, r], stacked to [len, r, r]: the sum of the diagonal blocks of the folded matrix's Gram."""
    k, rank = _folds(tall), tall[0].shape[1]
    if k == 1:
        return _grams([t.T for t in tall])
    folded = _grams([t.view(-1, k * rank).T for t in tall])
    return folded.view(-1, k, rank, k, rank).diagonal(dim1=1, dim2=3).sum(-1)


def _block_diagonal(P: Tensor, k: int) -> Tensor:
    """[n, r, r] → [n, kr, kr] with P in each of the k diagonal blocks."""
    n, rank, _ = P.shape
    blocks = P.new_zeros(n, k, rank, k, rank)
    blocks.diagonal(dim1=1, dim2=3).copy_(P[..., None])
    return blocks.view(n, k * rank, k * rank)


def missing_directions(layer: AdapterLayer) -> int:
    """How many of the r directions the started factor does not span (a weight of lower rank than r), to float32."""
    A, B = _whole_factors(layer)
    factor = _wide(A if A.any() else B.flatten(1).T)
    if not bool(torch.isfinite(factor).all()):
        return 0
    with full_precision():
        squares = torch.linalg.eigvalsh(
            factor.double() @ factor.double().T
        )  # float64: good down to 1e-8 of the largest
    # Singular values below this are float32's rounding of the product that made the factor.
    least = max(factor.shape) * torch.finfo(torch.float32).eps
    kept = int((squares > squares[-1] * least**2).sum()) if squares.numel() else 0
    return layer.rank - kept if kept else 0


class Preconditioner:
    """Rewrites the gradients of LoRA pairs in place, once per optimiser step, before clipping.

    g_B ← g_B P_B with P_B from A Aᵀ, and g_A ← P_A g_A with P_A from Bᵀ B, both from the factors before the step.
    At t = 0 the factor whose partner starts at zero is skipped (its own gradient is zero then anyway).
    All pairs of equal rank share one factorisation; Gram matrices are float32 (float64 factors: float64). On an
    accelerator nothing waits for the stream after the first step.
    """

    def __init__(
        self,
        layers: Sequence[AdapterLayer],
        *,
        damping: float = 1e-6,
        normalize: str = "frobenius",
        inverse: str = "cholesky",
    ) -> None:
        if not layers:
            raise ValueError("there is no LoRA pair to precondition")
        if not 0 <= damping < float("inf"):
            raise ValueError(f"damping: given {damping}, required a finite number ≥ 0")
        self.damping = damping
        self.normalize = normalize
        self.inverse = inverse
        self.steps = 0
        self._layers = list(layers)

    @property
    def layers(self) -> list[AdapterLayer]:
        """The pairs there are; PEFT may have deleted an adapter since."""
        return [layer for layer in self._layers if layer.adapter in layer.module.r]

    def add(self, layers: Sequence[AdapterLayer], stepped: Sequence[Tensor]) -> None:
        """Takes up those of ``layers`` that it has not and that have a factor among the ``stepped``."""
        new = {id(parameter) for parameter in stepped} - {id(parameter) for parameter in self.parameters}
        self._layers += [layer for layer in layers if {id(layer.parameter_A), id(layer.parameter_B)} & new]
        check_untied(once_each(self.layers))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The factors that the layers hold now; a wrapper (FSDP 2) may have put others in since the last step."""
        return [factor for layer in self.layers for factor in (layer.parameter_A, layer.parameter_B)]

    @torch.no_grad()
    def step(self) -> None:
        """Preconditions the gradients that are there now, in float32 under whatever autocast."""
        with full_precision():
            for layers in self._groups():
                gathered = _Gathered()
                self._scale([gathered.pair(layer) for layer in layers])
                gathered.scatter()
        self.steps += 1

    def _groups(self) -> Iterable[list[AdapterLayer]]:
        """The layers whose pairs can share one factorisation."""
        groups: dict[tuple[object, ...], list[AdapterLayer]] = defaultdict(list)
        for layer in self.layers:
            A = layer.parameter_A
            groups[layer.rank, A.device, A.dtype].append(layer)
        return groups.values()

    def _scale(self, pairs: Sequence[_Pair]) -> None:
        """Rewrites the gradients of one group in place."""
        grams = torch.cat([_grams([_wide(p.A) for p in pairs]), _tall_grams([_wide(p.B) for p in pairs])])
        P = damped_inverse(grams, damping=self.damping, normalize=self.normalize, inverse=self.inverse)
        gradients = [p.grad_B for p in pairs if p.grad_B is not None]
        k = _folds(gradients) if gradients else 1
        P_Bs = (P[: len(pairs)] if k == 1 else _block_diagonal(P[: len(pairs)], k)).unbind()
        jobs, first = [], self.steps == 0
        for (A, B, grad_A, grad_B), P_B, P_A in zip(pairs, P_Bs, P[len(pairs) :].unbind(), strict=True):
            if grad_B is not None and not (first and not A.any()):
                folded = grad_B if k == 1 else grad_B.view(-1, k * B.shape[1])
                jobs.append(_One(folded, P_B, left=False))
            if grad_A is not None and not (first and not B.any()):
                jobs.append(_One(grad_A, P_A, left=True))
        (scale_one_by_one if grams.device.type == "cpu" else scale_batched)(jobs)

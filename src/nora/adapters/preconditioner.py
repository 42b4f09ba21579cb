"""Normalised scaled-GD preconditioning of LoRA gradients: NoRA+ and LoRA-P (paper Alg. 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from nora.adapters.layers import AdapterLayer


def damped_inverse(gram: Tensor, *, damping: float, normalize: str) -> Tensor:
    """P = (G + λI)⁻¹ for a batch of Gram matrices [n, r, r], divided by ‖P‖_F where ``normalize`` is "frobenius".

    By Cholesky in at least float32; λ is added to the Gram matrix. Where a factorisation breaks down (rounding, λ too
    small) that matrix alone goes through the hermitian pseudo-inverse (on an accelerator: is taken for I).
    """
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(gram + damping * eye)
    broken = info != 0
    # What a broken factorisation leaves may have a zero on its diagonal, which cholesky_inverse refuses.
    inverse = torch.cholesky_inverse(torch.where(broken[:, None, None], eye, factor))
    if gram.device.type == "cpu" and bool(broken.any()):  # on an accelerator the check would wait for the stream
        inverse[broken] = torch.linalg.pinv(gram[broken] + damping * eye, hermitian=True)
    if normalize == "frobenius":
        return inverse / torch.linalg.matrix_norm(inverse, keepdim=True)
    if normalize == "none":
        return inverse
    raise ValueError(f"normalize: given {normalize!r}, required 'frobenius' or 'none'")


def _gram(factors: Sequence[Tensor]) -> Tensor:
    """F Fᵀ for each F [r, n_i], stacked to [len, r, r], in at least float32."""
    wide = [f.to(torch.promote_types(f.dtype, torch.float32)) for f in factors]
    return torch.stack([f @ f.T for f in wide])


class Preconditioner:
    """Rewrites the gradients of LoRA pairs in place, once per optimiser step, before clipping.

    g_B ← g_B P_B with P_B from A Aᵀ, and g_A ← P_A g_A with P_A from Bᵀ B, both from the factors before the step.
    At t = 0 the factor whose partner starts at zero is skipped (its own gradient is zero then anyway).
    """

    def __init__(self, layers: Sequence[AdapterLayer], *, damping: float = 1e-6, normalize: str = "frobenius") -> None:
        if not layers:
            raise ValueError("there is no LoRA pair to precondition")
        self.damping = damping
        self.normalize = normalize
        self.steps = 0
        self._groups: dict[int, list[AdapterLayer]] = defaultdict(list)
        for layer in layers:
            self._groups[layer.rank].append(layer)

    @torch.no_grad()
    def step(self) -> None:
        """Preconditions the gradients that are there now."""
        for layers in self._groups.values():
            P_B = damped_inverse(_gram([x.A for x in layers]), damping=self.damping, normalize=self.normalize)
            P_A = damped_inverse(_gram([x.B.T for x in layers]), damping=self.damping, normalize=self.normalize)
            for i, layer in enumerate(layers):
                first = self.steps == 0
                if layer.B.grad is not None and not (first and not layer.A.any()):
                    layer.B.grad.copy_(layer.B.grad.to(P_B.dtype) @ P_B[i])
                if layer.A.grad is not None and not (first and not layer.B.any()):
                    layer.A.grad.copy_(P_A[i] @ layer.A.grad.to(P_A.dtype))
        self.steps += 1

"""What is measured of an adapter beside its scores: sharpness before training, what it moved and forgot after it.

Sharpness is the largest eigenvalue of the loss's Hessian over the adapter, by Lanczos iteration: gradient descent is
stable where its step is below 2 over it; how it grows from start to start says which learning rates each can use (arXiv
2602.04998). Which singular values the adapter moves most is the paper's Figure 2. What it forgot is how a text that the
task has nothing to do with is predicted after training, against the untouched base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nora.adapters import AdapterLayer, evaluating

PRODUCTS = 30
SHOWN = 64  # indices of singular values the figure shows


@dataclass(frozen=True)
class Sharpness:
    """``value``: the largest eigenvalue, in nats per squared unit of the parameters; ``products`` with the Hessian it
    took; ``residual``: ‖H v - λ v‖ / |λ|, no farther from an eigenvalue than which λ is."""

    value: float
    products: int
    residual: float


def sharpness(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    parameters: Sequence[nn.Parameter],
    *,
    generator: torch.Generator,
    products: int = PRODUCTS,
    tolerance: float = 1e-3,
) -> Sharpness:
    """λ_max of ∇² ``loss(model)`` over ``parameters`` after at most ``products`` Hessian-vector products (Lanczos from
    a random vector, fully reorthogonalised), fewer where the residual falls below ``tolerance``.

    The products are exact: a second backward pass through the gradient, in eval mode, with torch's plain attention (its
    fused kernels have no second derivative). No ``.grad`` is touched.
    """
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        gradients = torch.autograd.grad(loss(model), parameters, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            with torch.enable_grad():
                inner = (_flat(gradients) * vector).sum()
            return _flat(torch.autograd.grad(inner, parameters, retain_graph=True, materialize_grads=True)).detach()

        return _lanczos(product, _flat(gradients).detach(), generator, products, tolerance)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@torch.no_grad()
def _lanczos(
    product: Callable[[Tensor], Tensor], like: Tensor, generator: torch.Generator, most: int, tolerance: float
) -> Sharpness:
    q = torch.randn(len(like), generator=generator).to(like)
    basis: list[Tensor] = [q / q.norm()]
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        w = product(basis[-1])
        alphas.append(float(w @ basis[-1]))
        for _ in range(2):  # once is not enough in float32
            Q = torch.stack(basis)
            w = w - Q.T @ (Q @ w)
        beta = float(w.norm())
        off = torch.tensor(betas, dtype=torch.float64)
        T = torch.diag(torch.tensor(alphas, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(T)
        top, residual = float(values[-1]), abs(beta * float(vectors[-1, -1]))
        relative = residual / max(abs(top), torch.finfo(torch.float32).tiny)
        if relative <= tolerance or len(alphas) >= min(most, len(like)):
            return Sharpness(top, len(alphas), relative)
        betas.append(beta)
        basis.append(w / beta)


@torch.no_grad()
def moved_singular_values(layers: Sequence[AdapterLayer], pretrained: Mapping[str, Tensor]) -> dict[str, Any]:
    """Counts over the layers of the r indices whose sorted singular value changed most, float64.

    For each layer |σ_i(W + s B A) - σ_i(W pretrained)| over the full spectrum; the r largest add one to their index.
    ``counts`` covers the first 64 indices, ``beyond`` is the mass outside them, ``top_rank_share`` the share of the
    mass on the r leading indices.
    """
    width = max(min(layer.weight.shape) for layer in layers)
    counts = torch.zeros(width, dtype=torch.long)
    leading = 0
    for layer in layers:
        before = torch.linalg.svdvals(pretrained[layer.name].double())
        merged = layer.weight.double() + layer.scaling * layer.B.double() @ layer.A.double()
        moved = (torch.linalg.svdvals(merged) - before.to(merged.device)).abs()
        indices = moved.topk(layer.rank).indices.cpu()
        counts[indices] += 1
        leading += int((indices < layer.rank).sum())
    mass = int(counts.sum())
    return {
        "counts": counts[:SHOWN].tolist(),
        "beyond": int(counts[SHOWN:].sum()),
        "matrices": len(layers),
        "top_rank_share": leading / mass,
    }


@torch.no_grad()
def text_losses(model: nn.Module, windows: Tensor, *, batch_size: int = 8) -> Tensor:
    """-log p of every token of ``windows`` [n, length] but the first of each, [n, length - 1] in nats, float64, on the
    CPU; in evaluation mode."""
    device = next(model.parameters()).device
    found = []
    with evaluating(model):
        for batch in windows.to(device).split(batch_size):
            logits = model(input_ids=batch).logits[:, :-1].float()
            found.append(F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").double().cpu())
    return torch.cat(found)


def forgetting(before: Tensor, after: Tensor) -> dict[str, Any]:
    """What training changed of a text's losses (``text_losses``), nats per token: the mean before and after (perplexity
    is its exponential), and ``drift``, the mean size of a token's change, which gains here do not hide losses there."""
    drift = float((after - before).abs().mean())
    return {"before": float(before.mean()), "after": float(after.mean()), "drift": drift, "tokens": after.numel()}

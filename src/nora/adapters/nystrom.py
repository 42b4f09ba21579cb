"""The Nyström init for anybody's PEFT model, in one call: from the weight (NoRA), or from a gradient (Appendix A.4)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nora import streams
from nora.adapters.initialize import check_unmoved, check_weight, initialize_, write_factors
from nora.adapters.inits import Factors, standard_normal
from nora.adapters.layers import AdapterLayer, adapter_layers, check_untied, lora_layers
from nora.adapters.proof import InitReport, prove_factors
from nora.adapters.surroundings import evaluating


def check_fresh(layers: list[AdapterLayer]) -> None:
    """ValueError where an adapter looks trained: PEFT starts one factor at zero, and here neither is."""
    for layer in layers:
        if layer.A.any() and layer.B.any():
            raise ValueError(
                f"{layer.name}: both factors of adapter {layer.adapter!r} are non-zero, so it is trained or started "
                "otherwise; make a fresh one with init_lora_weights=True, or pass overwrite=True"
            )


def check_trainable(layers: list[AdapterLayer]) -> None:
    """ValueError where a loss cannot depend on both factors: frozen, inactive or switched off."""
    for layer in layers:
        if layer.why_not_read is not None:
            raise ValueError(f"{layer.name}: {layer.why_not_read}")
        if not (layer.parameter_A.requires_grad and layer.parameter_B.requires_grad):
            raise ValueError(
                f"{layer.name}: a factor of adapter {layer.adapter!r} is frozen, required both trainable; "
                "start the adapter before freezing it"
            )


@torch.no_grad()
def nystrom_init_(
    model: nn.Module,
    *,
    xi: float,
    side: str = "A",
    divide_by_scaling: bool = True,
    seed: int = 0,
    adapter_name: str = "default",
    overwrite: bool = False,
) -> InitReport:
    """Starts a LoRA adapter from a Nyström sketch of each pretrained weight (paper Alg. 1): A = (ξ/s) G W, B = 0.

    ``model`` is a PEFT model (or any module with PEFT LoRA layers: diffusers' ``add_adapter`` too) before its first
    training step. With W [out, in] the frozen weight, A [r, in], B [out, r], s = α/r (rsLoRA: α/√r; 1 where
    ``divide_by_scaling`` is off) and G [r, out] standard normal; ``xi`` > 0 is the sketch's standard deviation.
    ``side="B"`` is the literal reading of X0 = W Ω: B = (ξ/s) W Ω, A = 0. Each layer draws from its own stream, keyed
    by ``seed`` (0 … 2³²-1) and the module's name, so that neither the order of modules nor a wrapper changes the draw.

    Linear, Conv1D, convolutions (the kernel flattened: in = channels · kernel; each group alone), embeddings (the table
    transposed: in = vocabulary), nn.MultiheadAttention, bare parameters (``target_parameters``; each expert of a
    mixture alone); rank and alpha patterns, rsLoRA, DoRA, BD-LoRA (each block alone), several adapters; float16,
    bfloat16 and bitsandbytes' 8/4-bit bases (one layer at a time, the product in float32). With ``ensure_weight_tying``
    the embedding is started and the head reads the same pair, transposed. The base weights and the model's output do
    not change. Call it before the optimiser is made, before the model is sharded and before torch.compile has run.

    Returns the proof that the factors read are the formula's; look at ``report.passed``, and give ``report.start`` to
    ``prove_init`` to measure more. Raises ValueError, the model left as it was, for an adapter that looks trained (the
    factor PEFT starts at zero is not) unless ``overwrite``, for ``xi``, ``side`` or ``seed`` out of range, no LoRA
    layer, a weight that is zero, not finite, not floating-point, not whole (sharded), moved by another start (PiSSA,
    OLoRA, …), merged with an adapter or on the meta device, a factor that two layers share.
    """
    if side not in ("A", "B"):
        raise ValueError(f"side: given {side!r}, required 'A' or 'B'")
    if not overwrite:
        layers = lora_layers(model, adapter_name)
        check_unmoved(model, layers)
        for layer in layers:
            check_weight(layer)
        check_fresh(layers)
    start = initialize_(
        model, "nystrom", seed=seed, adapter_name=adapter_name, xi=xi, side=side, divide_by_scaling=divide_by_scaling
    )
    return prove_factors(model, start, adapter_name=adapter_name)


def nystrom_gradient_init_(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    xi: float,
    side: str = "A",
    divide_by_scaling: bool = True,
    seed: int = 0,
    adapter_name: str = "default",
    overwrite: bool = False,
) -> list[AdapterLayer]:
    """Starts a LoRA adapter from a sketch of -∇f(W), where ``nystrom_init_`` takes one of W.

    Appendix A.4: X0 = -∇_X f(X Yᵀ) at (X, Y) = (0, Ω), then Y0 = 0; for f = ½‖X Yᵀ - W‖² this is W Ω. Here, with f
    = ``loss(model)`` (a scalar, one forward pass on data of yours) at the pretrained weights:
    side "A": A = -(ξ/s) G ∇_W f with G ~ N(0, 1) [r, out], B = 0; side "B": B = -(ξ/s) ∇_W f Ω, A = 0; s = 1 where
    ``divide_by_scaling`` is off. One backward pass through the factors: ∇_W f itself is never formed. The gradient's
    scale is the loss's, so ``xi`` is not comparable with that of ``nystrom_init_``. The base and the output are
    untouched, no ``.grad`` is. Raises ValueError, the model left as it was, as ``nystrom_init_`` does, and where the
    loss is not a finite scalar or does not depend on a layer, or a factor is frozen, inactive or switched off. ``loss``
    is called in eval mode, without dropout. ``prove_init`` cannot repeat it: that would take the same data.
    """
    if side not in ("A", "B"):
        raise ValueError(f"side: given {side!r}, required 'A' or 'B'")
    if not (math.isfinite(xi) and xi > 0):
        raise ValueError(f"xi: given {xi}, required a finite number > 0")
    layers = lora_layers(model, adapter_name)
    check_unmoved(model, layers)
    for layer in layers:
        check_weight(layer)
    check_untied(adapter_layers(model, adapter_name))  # of a tied head the pass would see half the gradient
    check_trainable(layers)
    if not overwrite:
        check_fresh(layers)
    before = [Factors(layer.A.detach().clone(), layer.B.detach().clone()) for layer in layers]
    try:
        with evaluating(model):  # the formula is of f, not of f with some entries of x dropped
            gradients = _gradients_at_sketch(model, loss, layers, side, seed)
        made = []
        for layer, gradient in zip(layers, gradients, strict=True):
            if gradient is None or not torch.isfinite(gradient).all():
                found = "no" if gradient is None else "a non-finite"
                raise ValueError(f"{layer.name}: the loss has {found} gradient here, required a finite one")
            # d/dA of f(W + s B A) is s Bᵀ ∇f: one s is the chain rule's, one the init's own.
            scale = -xi / (layer.scaling**2 if divide_by_scaling else layer.scaling)
            zero = torch.zeros_like(layer.B if side == "A" else layer.A)
            made.append(Factors(scale * gradient, zero) if side == "A" else Factors(zero, scale * gradient))
    except BaseException:
        with torch.no_grad():
            for layer, factors in zip(layers, before, strict=True):
                write_factors(layer, factors)
        raise
    with torch.no_grad():
        for layer, factors in zip(layers, made, strict=True):
            write_factors(layer, factors)
    return layers


def _gradients_at_sketch(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], layers: list[AdapterLayer], side: str, seed: int
) -> list[Tensor | None]:
    """The gradient of the sketched factor at zero, its partner being a standard Gaussian."""
    with torch.no_grad():
        for layer in layers:
            draw = streams.generator(seed, "init", layer.name)
            out_features, in_features = layer.B.shape[0], layer.A.flatten(1).shape[1]
            if side == "A":  # drawn as the plain sketch draws it: G [r, out], Ω [in, r]
                omega = standard_normal(layer.rank, out_features, draw).T
                write_factors(layer, Factors(torch.zeros_like(layer.A), omega))
            else:
                omega = standard_normal(in_features, layer.rank, draw).T
                write_factors(layer, Factors(omega, torch.zeros_like(layer.B)))
    with torch.enable_grad():
        value = loss(model)
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise ValueError(f"loss: given {value!r}, required a tensor that depends on the model's factors")
        if value.numel() != 1 or not torch.isfinite(value).all():
            raise ValueError(f"loss: given {tuple(value.shape)} values or a non-finite one, required a finite scalar")
        sketched = [layer.parameter_A if side == "A" else layer.parameter_B for layer in layers]
        unique = list(dict.fromkeys(sketched))  # a mixture's experts share one
        found = dict(zip(unique, torch.autograd.grad(value, unique, allow_unused=True), strict=True))
    parts = [layer.part_A if side == "A" else layer.part_B for layer in layers]
    whole = [found[parameter] for parameter in sketched]
    return [None if g is None else part(g) for part, g in zip(parts, whole, strict=True)]

"""NoRA+ as an optimiser: any torch optimiser whose LoRA gradients are preconditioned first."""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nora.adapters.layers import AdapterLayer, adapter_layers
from nora.adapters.preconditioner import (
    NORMALIZERS,
    Preconditioner,
    missing_directions,
    trainable_pairs,
    whole_tensor,
)

_STEPS = "nora_plus_steps"  # key of the first parameter group: what survives every way to save an optimiser


def _needs_closure(optimizer_cls: type[Optimizer]) -> bool:
    closure = inspect.signature(optimizer_cls.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _without_hooks(optimizer_cls: type[Optimizer]) -> Callable[[Optimizer], Any]:
    """The class's own step. Once an instance exists torch wraps it to call the step hooks, as it wraps ours."""
    step: Any = optimizer_cls.step
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def _check_same(factors: Sequence[Tensor], stepped: Sequence[Tensor]) -> None:
    """ValueError where a factor of the model is not among the parameters this optimiser steps."""
    known = {id(parameter) for parameter in stepped}
    if any(id(factor) not in known for factor in factors):
        raise ValueError(
            "step: given an optimiser whose parameters are no longer the model's LoRA factors (a wrapper flattened, "
            "sharded or copied one of the two), required the same; make the optimiser after wrapping the model, and "
            "with DeepSpeed, whose other engines step flat copies, take stage 0 in float32 (or FSDP 2)"
        )


def _clip(parameters: Sequence[Tensor], max_norm: float) -> None:
    """Clips the global gradient norm. torch's own sum of norms takes no sharded tensors (FSDP 2) beside whole ones, nor
    two meshes: each kind's norm is taken alone then."""
    kinds: dict[object, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        kinds[getattr(parameter, "device_mesh", None)].append(parameter)
    if len(kinds) == 1:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    norms = [whole_tensor(torch.nn.utils.clip_grad_norm_(kind, float("inf"))) for kind in kinds.values()]
    shrink = (max_norm / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(shrink)


def _warn_of_missing_directions(pairs: Sequence[AdapterLayer]) -> None:
    short = {layer.name: missing for layer in pairs if (missing := missing_directions(layer))}
    if short:
        name, missing = next(iter(short.items()))
        warnings.warn(
            f"{name}: {missing} directions of its rank are empty ({len(short)} such layers): a weight of lower rank; "
            "with normalize='frobenius' they take almost all of P and the others' gradients vanish: give "
            "inverse='pinv', damping=0.0, or normalize='none', or a smaller rank",
            stacklevel=3,
        )


def create_nora_plus_optimizer(
    model: nn.Module,
    optimizer_cls: type[Optimizer],
    *,
    damping: float = 1e-6,
    normalize: str = "frobenius",
    inverse: str = "cholesky",
    max_grad_norm: float | None = None,
    **optimizer_kwargs: Any,
) -> Optimizer:
    """An ``optimizer_cls`` over the trainable parameters of ``model`` that takes NoRA+ steps (paper Alg. 2).

    Before each step, for every LoRA pair A [r, in], B [out, r], from the factors as they are:

        g_B ← g_B P_B,  P_B = (A Aᵀ + λI)⁻¹ / ‖(A Aᵀ + λI)⁻¹‖_F
        g_A ← P_A g_A,  P_A = (Bᵀ B + λI)⁻¹ / ‖(Bᵀ B + λI)⁻¹‖_F   (not at t = 0 where B is still zero)

    then the global gradient norm is clipped to ``max_grad_norm`` (None: not at all), then ``optimizer_cls`` steps.
    λ is ``damping``, added to the Gram matrix. ``normalize="none"`` leaves out the division: the step of
    ``peft.optimizers.create_riemannian_optimizer(reg=damping)``. On an adapter with PEFT's ordinary start this is
    LoRA-P, after ``nystrom_init_`` it is NoRA+. Pairs are found by module type (linear, convolution, embedding) in
    every adapter of the model; other trainable parameters are stepped unchanged. ``optimizer_kwargs`` (``lr``,
    ``weight_decay``, …) go to ``optimizer_cls``. Create it after the adapter is initialised and on its device.

    Where a factor spans fewer than r directions (a weight of rank < r) the division leaves the rest almost no gradient
    and warns; ``inverse="pinv"`` with ``damping=0.0`` takes (A Aᵀ)⁺ and (Bᵀ B)⁺ instead, which moves what is spanned.

    The pairs are read from the model at every step, so that a wrapper may put other parameters in (FSDP 2 by
    accelerate's ``prepare``), as long as the optimiser is given the same ones; sharded factors are gathered, and the
    norm that is clipped is that of all processes together. The factors of an adapter added later are preconditioned
    once ``add_param_group`` has them; those of a deleted one are left out.

    Clip here, not in the training loop, which would clip before the preconditioner: with Hugging Face's Trainer give
    ``max_grad_norm=1.0`` here and ``TrainingArguments(max_grad_norm=0)``. The step counter is in ``state_dict``.

    Raises TypeError where ``optimizer_cls`` is no optimiser class; ValueError where it needs a closure, where a pair
    is trained in one factor only, where there is no pair, or where a setting is out of range. A closure given to
    ``step`` raises ValueError before anything moves, and so does a step whose parameters are no longer the model's
    (DeepSpeed's engines but stage 0 in float32 keep flat copies of them), or are pieces of them (FSDP 1).
    """
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, Optimizer)):
        raise TypeError(f"optimizer_cls: given {optimizer_cls!r}, required a subclass of torch.optim.Optimizer")
    if _needs_closure(optimizer_cls):
        raise ValueError(
            f"optimizer_cls: given {optimizer_cls.__name__}, which needs a closure and evaluates the loss inside "
            "step(): its line search or curvature would see gradients of a metric that changes; use SGD, AdamW, …"
        )
    if normalize not in NORMALIZERS:
        raise ValueError(f"normalize: given {normalize!r}, required 'frobenius' or 'none'")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm: given {max_grad_norm}, required a number > 0, or None for no clipping")
    pairs = trainable_pairs(model)
    made = Preconditioner(pairs, damping=damping, normalize=normalize, inverse=inverse)
    if normalize == "frobenius" and inverse == "cholesky":
        _warn_of_missing_directions(pairs)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    class NoraPlusOptimizer(optimizer_cls):  # type: ignore[misc, valid-type]
        """``optimizer_cls`` on preconditioned gradients."""

        @torch.no_grad()
        def step(self, closure: Callable[[], float] | None = None) -> Any:
            if closure is not None:
                raise ValueError(
                    "closure: given one, required none: it would run backward() inside step() and overwrite the "
                    "preconditioned gradients; call loss.backward() before step()"
                )
            preconditioner, group = self._nora_plus, self.param_groups[0]
            stepped = [parameter for part in self.param_groups for parameter in part["params"]]
            _check_same(preconditioner.parameters, stepped)
            preconditioner.steps = group.get(_STEPS, 0)
            preconditioner.step()
            group[_STEPS] = preconditioner.steps
            if max_grad_norm is not None:
                _clip(stepped, max_grad_norm)
            return _without_hooks(optimizer_cls)(self)

        def add_param_group(self, param_group: dict[str, Any]) -> None:
            """Also with the factors of an adapter that was added later: its pairs are found."""
            super().add_param_group(param_group)
            if hasattr(self, "_nora_plus"):
                stepped = [parameter for part in self.param_groups for parameter in part["params"]]
                self._nora_plus.add(adapter_layers(self._model), stepped)

        def __getstate__(self) -> dict[str, Any]:
            held = {"_nora_plus": self._nora_plus, "_model": self._model}  # for deepcopy, with the model or alone
            return {**super().__getstate__(), **held}

    optimizer: Optimizer = NoraPlusOptimizer(trained, **optimizer_kwargs)
    optimizer._nora_plus, optimizer._model = made, model  # type: ignore[attr-defined]
    optimizer.param_groups[0][_STEPS] = 0
    # A fused optimiser would otherwise be handed gradients that a GradScaler has not unscaled: clipping would be wrong.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer

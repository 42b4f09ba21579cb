"""What data-driven starts take from training rows: gradients of the pretrained weights, moments of the layers' inputs.

Every pass is through the base alone (adapters off, eval mode, no autocast), one batch at a time.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import EvaConfig, LoraConfig
from peft.tuners.lora import eva
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nora.adapters.layers import AdapterLayer
from nora.adapters.surroundings import evaluating, full_precision, without_adapters

Loss = Callable[[Any, Any], Tensor]
Statistics = Mapping[str, Mapping[str, Tensor]]
"""Canonical name of a layer → what a start needs of it, by name."""
_PASSES = 100  # over the rows; PEFT's incremental PCA goes round until its components stand still


@dataclass(frozen=True)
class Stream:
    """Training rows in batches, and what is minimised over them."""

    model: nn.Module
    layers: Sequence[AdapterLayer]
    loss: Loss
    batches: Sequence[Any]

    def losses(self) -> Iterator[Tensor]:
        """The loss of every batch, a scalar. ValueError where there is none or it is not finite."""
        if not self.batches:
            raise ValueError("batches: given none, required at least one batch of training rows")
        for batch in self.batches:
            value = self.loss(self.model, batch)
            if not (isinstance(value, Tensor) and value.numel() == 1 and bool(torch.isfinite(value).all())):
                raise ValueError(f"loss: given {value!r}, required a finite scalar tensor for every batch")
            yield value


def check_matrix(layer: AdapterLayer) -> None:
    """ValueError where the adapted layer is not a plain linear map with a floating-point weight."""
    base = layer.module.get_base_layer()
    if not (isinstance(base, nn.Linear | Conv1D) and layer.held_weight.is_floating_point()):
        kind = type(base).__name__
        raise ValueError(f"{layer.name}: given a {kind}, required a linear layer that is not quantised with this start")
    if layer.part is not None:
        raise ValueError(f"{layer.name}: given block-diagonal factors (BD-LoRA), required full ones with this start")


@contextlib.contextmanager
def _base_alone(stream: Stream) -> Iterator[None]:
    for layer in stream.layers:
        check_matrix(layer)
    with evaluating(stream.model), without_adapters(stream.model), full_precision():
        yield


def mean_gradients(stream: Stream, rank: Mapping[str, int]) -> Statistics:
    """``gradient`` [out, in] of every layer: ∇_W of the loss, the mean over the batches, float32."""
    del rank
    held = {layer.name: layer.held_weight for layer in stream.layers}
    flags = {id(p): p.requires_grad for p in held.values()}
    total: dict[str, Tensor] = {}
    try:
        with _base_alone(stream), torch.enable_grad():
            for weight in held.values():
                weight.requires_grad_(True)
            for value in stream.losses():
                found = torch.autograd.grad(value, list(held.values()), allow_unused=True)
                for name, gradient in zip(held, found, strict=True):
                    if gradient is None or not bool(torch.isfinite(gradient).all()):
                        raise ValueError(f"{name}: the loss has no finite gradient here, required one")
                    total[name] = total.get(name, 0) + gradient.detach().to(torch.float32)
    finally:
        for weight in held.values():
            weight.requires_grad_(flags[id(weight)])
    count = len(stream.batches)
    made = {}
    for layer in stream.layers:
        mean = total[layer.name] / count
        mean = mean.T.contiguous() if layer.module.fan_in_fan_out else mean
        if not bool(mean.any()):
            raise ValueError(f"{layer.name}: the gradient is zero over the given rows, required one to start from")
        made[layer.name] = {"gradient": mean}
    return made


def _watch(stream: Stream, see: Callable[[str, Tensor], None]) -> None:
    """Calls ``see(layer's name, inputs [tokens, in] in float32)`` for every layer and batch."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, inputs: see(name, inputs[0].detach().flatten(0, -2).to(torch.float32))

    handles = [x.module.get_base_layer().register_forward_pre_hook(hook(x.name)) for x in stream.layers]
    try:
        with _base_alone(stream), torch.no_grad():
            for _ in stream.losses():
                pass
    finally:
        for handle in handles:
            handle.remove()


def scaled_covariances(stream: Stream, rank: Mapping[str, int]) -> Statistics:
    """``covariance`` [in, in] as PEFT's ``preprocess_corda`` sums it: of the inputs over their maximum, per batch."""
    del rank
    total: dict[str, Tensor] = {}

    def see(name: str, X: Tensor) -> None:
        X = X / X.max().abs()
        total[name] = total.get(name, 0) + X.T @ X

    _watch(stream, see)
    return {name: {"covariance": C / len(stream.batches)} for name, C in total.items()}


def principal_components(stream: Stream, rank: Mapping[str, int], *, tau: float = 0.99) -> Statistics:
    """``components`` [r, in] by PEFT's EVA, and ``covariance`` [in, in] of the same inputs (centred) to prove them by.

    PEFT takes a batch of at least r tokens at a time: shorter batches are left out, and ValueError where none is left.
    """
    total: dict[str, tuple[Tensor, Tensor, int]] = {}
    shortest: list[int] = []

    def see(name: str, X: Tensor) -> None:
        wide = X.to(torch.float64)
        gram, mean, count = total.get(name, (0, 0, 0))
        total[name] = gram + wide.T @ wide, mean + wide.sum(dim=0), count + len(X)
        shortest.append(len(X))

    _watch(stream, see)
    per_batch, width = len(stream.layers), max(rank.values())
    least = [min(shortest[i : i + per_batch]) for i in range(0, len(shortest), per_batch)]
    long = [batch for batch, tokens in zip(stream.batches, least, strict=True) if tokens >= width]
    if not long:
        raise ValueError(f"batches: given at most {max(least)} tokens in one, required {width} (the rank) for eva")
    components = _eva_components(stream, rank, long, tau)
    made = {}
    for name, (gram, summed, count) in total.items():
        mean = summed / count
        made[name] = {"components": components[name], "covariance": gram / count - torch.outer(mean, mean)}
    return made


@dataclass(frozen=True)
class _Opaque:
    """A batch that PEFT passes on as it is: what it holds is the loss's affair."""

    held: Any

    def to(self, device: object) -> _Opaque:
        del device
        return self


def _eva_components(stream: Stream, rank: Mapping[str, int], batches: Sequence[Any], tau: float) -> dict[str, Tensor]:
    """PEFT's own incremental PCA over the batches, at equal ranks (ρ = 1)."""
    names = {id(layer.module): layer.name for layer in stream.layers}
    adapted = {name: module for name, module in stream.model.named_modules() if id(module) in names}
    config = LoraConfig(
        r=max(rank.values()),
        rank_pattern={name: rank[names[id(module)]] for name, module in adapted.items()},
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, tau=tau),
    )
    passes = 0

    def forward(model: Any, batch: _Opaque) -> None:
        nonlocal passes
        passes += 1
        if passes > _PASSES * len(batches) + 1:
            raise ValueError(f"batches: EVA's components did not settle in {_PASSES} passes; give more or longer rows")
        stream.loss(model, batch.held)

    with _base_alone(stream), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        found = eva._get_eva_state_dict(
            model=stream.model,
            dataloader=[_Opaque(batch) for batch in batches],
            peft_config=config,
            target_module_check_fn=lambda name, module: name in adapted,
            forward_fn=forward,
            prepare_model_inputs_fn=lambda inputs, config: None,
            prepare_layer_inputs_fn=lambda layer_input, model_input, name: layer_input[0].flatten(0, -2),
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    return {names[id(adapted[name])]: found[name] for name in adapted}

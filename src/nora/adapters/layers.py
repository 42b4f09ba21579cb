"""PEFT's LoRA layers of a model, read by module type, under canonical names; products with their weights; outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

_CHUNK = 2**22  # entries of the weight that are widened at a time: 16 MiB in float32


def left_product(G: Tensor, W: Tensor) -> Tensor:
    """G W [r, in] in float32 for G [r, out] float32 and W [out, in]; a weight of another dtype goes by column blocks.

    Every entry is one whole dot product, so the blocks change no order of summation.
    """
    if W.dtype == torch.float32:
        return G @ W
    product = torch.empty(G.shape[0], W.shape[1], dtype=torch.float32, device=W.device)
    width = max(1, _CHUNK // W.shape[0])
    for start in range(0, W.shape[1], width):
        torch.mm(G, W[:, start : start + width].to(torch.float32), out=product[:, start : start + width])
    return product


def right_product(W: Tensor, omega: Tensor) -> Tensor:
    """W Ω [out, r] in float32 for Ω [in, r] float32; as ``left_product``, by row blocks."""
    if W.dtype == torch.float32:
        return W @ omega
    product = torch.empty(W.shape[0], omega.shape[1], dtype=torch.float32, device=W.device)
    height = max(1, _CHUNK // W.shape[1])
    for start in range(0, W.shape[0], height):
        torch.mm(W[start : start + height].to(torch.float32), omega, out=product[start : start + height])
    return product


# What wrappers put before a module's own name: PEFT, DistributedDataParallel, torch.compile.
_WRAPPER_PARTS = ("base_model.model.", "module.", "_orig_mod.")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def canonical_name(name: str) -> str:
    """``name`` as the bare model spells it, so that a draw keyed by it does not depend on wrapping."""
    stripped = True
    while stripped:
        stripped = False
        for part in _WRAPPER_PARTS:
            if name.startswith(part):
                name, stripped = name[len(part) :], True
    return name.replace("._orig_mod.", ".")


@dataclass(frozen=True)
class AdapterLayer:
    """One LoRA layer and one of its adapters, as the map ``weight`` + scaling · B A on flattened inputs.

    ``weight`` is [out, in]. Linear and Conv1D: the matrix. Convolution: in = channels · kernel. Embedding: the
    transposed table, so in = vocabulary and out = width. ``A`` flattens to [r, in], ``B`` to [out, r].
    """

    name: str
    module: Any
    """The PEFT ``LoraLayer``."""
    adapter: str

    @property
    def is_embedding(self) -> bool:
        return self.adapter in self.module.lora_embedding_A

    @property
    def held_weight(self) -> Tensor:
        """The frozen weight as the base layer keeps it (8/4-bit ones packed)."""
        base = self.module.get_base_layer()
        held: Tensor = base.in_proj_weight if isinstance(base, nn.MultiheadAttention) else base.weight
        return held

    @property
    def weight(self) -> Tensor:
        """The frozen weight as [out, in]: a view; an 8/4-bit one is dequantised, for as long as the result is held."""
        base = self.module.get_base_layer()
        held = self.held_weight
        if type(held).__name__ == "Int8Params":
            held = _dequantised_int8(base)
        elif not isinstance(base, nn.MultiheadAttention):
            held = dequantize_module_weight(base)
        weight: Tensor = held.detach()
        if self.is_embedding or getattr(self.module, "fan_in_fan_out", False):
            return weight.T
        return weight.flatten(1) if weight.dim() > 1 else weight

    @property
    def A(self) -> nn.Parameter:
        if self.is_embedding:
            parameter: nn.Parameter = self.module.lora_embedding_A[self.adapter]
        else:
            parameter = self.module.lora_A[self.adapter].weight
        return parameter

    @property
    def B(self) -> nn.Parameter:
        if self.is_embedding:
            parameter: nn.Parameter = self.module.lora_embedding_B[self.adapter]
        else:
            parameter = self.module.lora_B[self.adapter].weight
        return parameter

    @property
    def rank(self) -> int:
        return int(self.module.r[self.adapter])

    @property
    def scaling(self) -> float:
        return float(self.module.scaling[self.adapter])


def _dequantised_int8(base: Any) -> Tensor:
    """bitsandbytes' 8-bit weight in float32; PEFT's own helper replaces the parameter on a CPU, and breaks it there."""
    row_maxima: Tensor = base.weight.SCB if base.weight.SCB is not None else base.state.SCB
    return base.weight.data.to(torch.float32) * (row_maxima.to(base.weight.device)[:, None] / 127)


def why_not_two_matrices(layer: AdapterLayer) -> str | None:
    """Why this layer's adapter is not a pair of matrices A [r, in], B [out, r]; None where it is."""
    if isinstance(layer.module, ParamWrapper):
        return "given an adapter over a bare parameter, required one over a layer (target_modules)"
    base = layer.module.get_base_layer()
    if isinstance(base, _CONVOLUTIONS) and base.groups > 1:
        return f"given a convolution with groups={base.groups}, required groups=1"
    return None


def adapter_layers(model: nn.Module, adapter_name: str | None = None) -> list[AdapterLayer]:
    """Every LoRA layer with every adapter on it (or the named one), whatever its kind, sorted by name; may be empty."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            carried = [*module.lora_A, *module.lora_embedding_A]
            found += [AdapterLayer(canonical_name(name), module, key) for key in carried]
    wanted = [layer for layer in found if adapter_name in (None, layer.adapter)]
    return sorted(wanted, key=lambda layer: (layer.name, layer.adapter))


def lora_layers(model: nn.Module, adapter_name: str = "default") -> list[AdapterLayer]:
    """Every LoRA layer that carries ``adapter_name``, sorted by canonical name.

    Raises ValueError where there is none, or where a layer is of a kind whose factors are not two matrices.
    """
    found = adapter_layers(model, adapter_name)
    if not found:
        raise ValueError(
            f"adapter {adapter_name!r}: the model has no LoRA layer of that name; "
            "wrap it with peft.get_peft_model(model, LoraConfig(...)) first"
        )
    for layer in found:
        reason = why_not_two_matrices(layer)
        if reason is not None:
            raise ValueError(f"{layer.name}: {reason}; leave it out of target_modules")
    return found


@torch.no_grad()
def snapshot_weights(model: nn.Module, names: set[str]) -> dict[str, Tensor]:
    """Copies of the weights [out, in] of the modules whose name ends in one of ``names`` ("q_proj", "to_out.0"), taken
    before any adapter exists."""
    return {
        canonical_name(name): module.weight.detach().clone()
        for name, module in model.named_modules()
        if any(f".{name}".endswith(f".{wanted}") for wanted in names)
        and isinstance(getattr(module, "weight", None), Tensor)
    }


def relative(difference: float, reference: float) -> float:
    """difference / reference, 0 / 0 being 0."""
    return difference / reference if reference > 0 else (0.0 if difference == 0 else float("inf"))


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    """The base model's forward, whether PEFT or diffusers put the adapters in; trainability is given back as it was."""
    tuned = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    enabled = [module for module in tuned if not module.disable_adapters]
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for module in enabled:
            module.enable_adapters(False)
        yield
    finally:
        for module in enabled:
            module.enable_adapters(True)
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)


def output_difference(model: Any, inputs: Mapping[str, Any], reference: Tensor | None = None) -> float:
    """Relative difference between the output with and without the adapter (or a given base output)."""
    was_training = model.training
    model.eval()
    try:
        output = _first_tensor(model(**inputs))
        if reference is None:
            with _without_adapters(model):
                reference = _first_tensor(model(**inputs))
    finally:
        model.train(was_training)
    return relative(torch.linalg.norm((output - reference).float()).item(), torch.linalg.norm(reference.float()).item())


def _first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]

"""PEFT's LoRA layers of a model, read by module type, under canonical names; products with their weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftMixedModel, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_CHUNK = 2**22  # entries of the weight that are widened at a time: 16 MiB in float32
_ROWS = 64  # rows of it, where the product is summed on a CPU: a megabyte of a row of 4096


def left_product(G: Tensor, W: Tensor) -> Tensor:
    """G W [r, in] in float32 for G [r, out] float32 and W [out, in]; a weight of another dtype goes by blocks.

    On a CPU by row blocks, summed: what is widened stays in the cache, and it costs what a float32 product does. On an
    accelerator by column blocks, few and large.
    """
    if W.dtype == torch.float32:
        return G @ W
    if W.device.type == "cpu" and W.stride(1) == 1:
        total = torch.zeros(G.shape[0], W.shape[1], dtype=torch.float32)
        for start in range(0, W.shape[0], _ROWS):
            total.addmm_(G[:, start : start + _ROWS], W[start : start + _ROWS].to(torch.float32))
        return total
    product = torch.empty(G.shape[0], W.shape[1], dtype=torch.float32, device=W.device)
    width = max(1, _CHUNK // W.shape[0])
    for start in range(0, W.shape[1], width):
        torch.mm(G, W[:, start : start + width].to(torch.float32), out=product[:, start : start + width])
    return product


def right_product(W: Tensor, omega: Tensor) -> Tensor:
    """W Ω [out, r] in float32 for Ω [in, r] float32; a weight of another dtype goes by row blocks."""
    if W.dtype == torch.float32:
        return W @ omega
    product = torch.empty(W.shape[0], omega.shape[1], dtype=torch.float32, device=W.device)
    height = max(1, _CHUNK // W.shape[1])
    for start in range(0, W.shape[0], height):
        torch.mm(W[start : start + height].to(torch.float32), omega, out=product[start : start + height])
    return product


# What wrappers put into a module's name, at any depth: torch.compile, activation checkpointing, FSDP 1.
_INNER_PARTS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def wrapper_prefix(model: nn.Module) -> str:
    """What PEFT and DistributedDataParallel (or another wrapper whose only child is ``module``) put before the bare
    model's names: read from the wrappers themselves, for a part of the model may be called the same."""
    prefix, inner = "", model
    while True:
        children = dict(inner.named_children())
        if isinstance(inner, PeftModel | PeftMixedModel):
            part = "base_model"
        elif isinstance(inner, BaseTuner):
            part = "model"
        elif len(children) == 1 and next(iter(children)) in ("module", *_INNER_PARTS):
            (part,) = children
        else:
            return prefix
        prefix += "" if part in _INNER_PARTS else f"{part}."
        inner = children[part]


def canonical_name(name: str, prefix: str) -> str:
    """``name`` as the bare model spells it, so that a draw keyed by it does not depend on wrapping; ``prefix`` is the
    model's ``wrapper_prefix``."""
    return unwrapped_name(name).removeprefix(prefix)


def unwrapped_name(name: str) -> str:
    """``name`` of a module or tensor without the parts that torch.compile, checkpointing and FSDP put into it."""
    return ".".join(part for part in name.split(".") if part not in _INNER_PARTS)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What requires a gradient, by its name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Pairs(NamedTuple):
    """How many pairs A, B a LoRA layer's parameters hold, and how they lie in them."""

    kind: str
    many: int

    @property
    def sharing_columns(self) -> int:
        """How many of them have the same columns of the parameter that holds B."""
        return self.many if self.kind in ("groups", "rows") else 1


def pairs_of(module: Any, adapter: str) -> Pairs:
    """How many, and of which kind: "experts" lie under one another in A and in the last dimension of B, "groups" and
    "rows" (B block-diagonal) under one another in both, "columns" (A block-diagonal) in A so and side by side in B."""
    base = module.get_base_layer()
    if isinstance(module, ParamWrapper):
        return Pairs("experts", 1 if module.get_param().dim() == 2 else module.num_experts)
    if isinstance(base, _CONVOLUTIONS):
        return Pairs("groups", base.groups)
    for kind, held in (("columns", module.lora_A), ("rows", module.lora_B)):
        if adapter in held and type(held[adapter]).__name__ == "BlockDiagonalLinear":  # not in every PEFT there is
            return Pairs(kind, held[adapter].nblocks)
    return Pairs("rows", 1)


@dataclass(frozen=True)
class AdapterLayer:
    """One LoRA layer and one of its adapters, as the map ``weight`` + scaling · B A on flattened inputs.

    ``weight`` is [out, in]. Linear and Conv1D: the matrix. Convolution: in = channels · kernel. Embedding: the
    transposed table, so in = vocabulary and out = width. ``A`` flattens to [r, in], ``B`` to [out, r]. A bare parameter
    (``target_parameters``): the matrix.

    Where PEFT keeps in one A and one B several pairs that never meet, each is a layer of its own: a mixture's experts;
    a grouped convolution's groups (r/groups rows of A, which read every channel; the group's rows of the weight, zero
    outside its own channels); the blocks of BD-LoRA (A block-diagonal: columns of the weight, B: rows).
    """

    name: str
    module: Any
    """The PEFT ``LoraLayer``."""
    adapter: str
    part: int | None = None
    """Which of the pairs that its parameters hold; None where they hold one."""

    @property
    def is_embedding(self) -> bool:
        return self.adapter in self.module.lora_embedding_A

    @property
    def held_weight(self) -> Tensor:
        """The frozen weight as the base layer keeps it (8/4-bit ones packed, experts stacked)."""
        if isinstance(self.module, ParamWrapper):
            stacked: Tensor = self.module.get_param()
            return stacked
        return _held_weight(self.module.get_base_layer())

    @property
    def weight(self) -> Tensor:
        """The frozen weight as [out, in]: a view, but for a group of a convolution; an 8/4-bit one is dequantised, for
        as long as the result is held."""
        return self.part_of_weight(self.whole_weight)

    @property
    def whole_weight(self) -> Tensor:
        """The weight [out, in] of all groups or blocks together, as the model without an adapter has it."""
        if isinstance(self.module, ParamWrapper):
            return matrices(self.module.get_base_layer(), self.held_weight)[self.part or 0]
        transposed = self.is_embedding or bool(getattr(self.module, "fan_in_fan_out", False))
        return _as_matrix(self.module.get_base_layer(), transposed)

    @property
    def parameter_A(self) -> nn.Parameter:
        """What is trained and holds A: of all experts at once in a mixture."""
        held: Any = self.module.lora_embedding_A if self.is_embedding else self.module.lora_A
        parameter: nn.Parameter = held[self.adapter] if self.is_embedding else held[self.adapter].weight
        return parameter

    @property
    def parameter_B(self) -> nn.Parameter:
        """As ``parameter_A``."""
        held: Any = self.module.lora_embedding_B if self.is_embedding else self.module.lora_B
        parameter: nn.Parameter = held[self.adapter] if self.is_embedding else held[self.adapter].weight
        return parameter

    def part_A(self, whole: Tensor) -> Tensor:
        """This layer's part of a tensor shaped as ``parameter_A`` (itself, its gradient): a view."""
        return whole if self.part is None else whole.view(self._pairs.many, -1, *whole.shape[1:])[self.part]

    def part_B(self, whole: Tensor) -> Tensor:
        """As ``part_A``; PEFT stacks the experts of B in its last dimension."""
        if self.part is None:
            return whole
        kind, count = self._pairs
        if kind == "experts":
            return whole.view(-1, self.rank, count)[..., self.part]
        if kind == "columns":
            return whole.view(len(whole), count, -1)[:, self.part]
        return whole.view(count, -1, *whole.shape[1:])[self.part]

    def part_of_weight(self, whole: Tensor) -> Tensor:
        """This layer's [out, in] of a matrix shaped as ``whole_weight``."""
        if self.part is None or (kind := self._pairs.kind) == "experts":
            return whole
        part = whole.chunk(self._pairs.many, dim=1 if kind == "columns" else 0)[self.part]
        if kind != "groups":
            return part
        width = part.shape[1]
        return nn.functional.pad(part, (self.part * width, (self._pairs.many - 1 - self.part) * width))

    @property
    def _pairs(self) -> Pairs:
        return pairs_of(self.module, self.adapter)

    @property
    def A(self) -> Tensor:
        return self.part_A(self.parameter_A)

    @property
    def B(self) -> Tensor:
        return self.part_B(self.parameter_B)

    @property
    def why_not_read(self) -> str | None:
        """Why the forward pass does not read this adapter; None where it does."""
        if self.module.disable_adapters:
            return "the adapters are switched off; call enable_adapters() (PEFT: enable_adapter_layers()) first"
        if self.adapter not in self.module.active_adapters:
            return f"adapter {self.adapter!r} is not active; call set_adapter({self.adapter!r}) first"
        return None

    @property
    def rank(self) -> int:
        """r of A [r, in] and B [out, r]: of PEFT's r the share of this group or block."""
        whole = int(self.module.r[self.adapter])
        return whole if self.part is None or self._pairs.kind == "experts" else whole // self._pairs.many

    @property
    def pretrained_name(self) -> str:
        """The name of ``whole_weight`` in the model without an adapter (PEFT wraps out_proj inside)."""
        whole = self.part is None or self._pairs.kind == "experts"
        return (self.name if whole else self.name.rpartition(".")[0]).replace(".base_layer.", ".")

    @property
    def scaling(self) -> float:
        return float(self.module.scaling[self.adapter])


def _held_weight(base: Any) -> Tensor:
    held: Tensor = base.in_proj_weight if isinstance(base, nn.MultiheadAttention) else base.weight
    return held


def matrices(base: nn.Module, parameter: Tensor) -> Tensor:
    """A bare parameter of ``base`` as [experts, out, in], a view: PEFT adapts those of two or three dimensions."""
    if parameter.dim() == 2:
        return parameter.detach()[None]
    return parameter.detach().mT if getattr(base, "is_transposed", False) else parameter.detach()


def _as_matrix(base: Any, transposed: bool) -> Tensor:
    """The weight of a module as [out, in], dequantised; ``transposed``: the module keeps [in, out]."""
    held = _held_weight(base)
    if type(held).__name__ == "Int8Params":
        held = _dequantised_int8(base)
    elif is_repacked(held):
        held = _dequantised_repacked(held)
    elif not isinstance(base, nn.MultiheadAttention):
        held = dequantize_module_weight(base)
    weight: Tensor = held.detach()
    if transposed:
        return weight.T
    return weight.flatten(1) if weight.dim() > 1 else weight


def _dequantised_int8(base: Any) -> Tensor:
    """bitsandbytes' 8-bit weight in float32; PEFT's own helper replaces the parameter on a CPU, and breaks it there."""
    row_maxima: Tensor = base.weight.SCB if base.weight.SCB is not None else base.state.SCB
    return base.weight.data.to(torch.float32) * (row_maxima.to(base.weight.device)[:, None] / 127)


def is_repacked(held: Tensor) -> bool:
    """Whether bitsandbytes has put a 4-bit weight in the order of its AVX-512 kernels, as an eval forward on such a
    CPU does: its bytes are then in another order, and its scales are rounded to bfloat16."""
    return bool(getattr(getattr(held, "quant_state", None), "packing_format_for_cpu", False))


def _dequantised_repacked(held: Any) -> Tensor:
    """A repacked 4-bit weight; ``dequantize_4bit`` reads its bytes in the old order and returns scrambled numbers."""
    from bitsandbytes import functional

    # bitsandbytes undoes the packing in place: on a copy of the state, so that the layer keeps what its kernel reads.
    packed, state = functional._convert_weight_packed_for_cpu_inverse(held.data, copy.copy(held.quant_state))
    scales = held.quant_state.absmax.T.reshape(-1).to(torch.float32)
    state.absmax, state.nested = scales, False  # re-quantising them, as the inverse does, would round a second time
    weight: Tensor = functional.dequantize_4bit(packed, state)
    return weight


def adapter_layers(model: nn.Module, adapter_name: str | None = None) -> list[AdapterLayer]:
    """Every LoRA layer with every adapter on it (or the named one), whatever its kind, sorted by name; may be empty."""
    found: list[AdapterLayer] = []
    prefix = wrapper_prefix(model)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for key in (*module.lora_A, *module.lora_embedding_A):
                found += _layers_of(canonical_name(name, prefix), module, key)
    wanted = [layer for layer in found if adapter_name in (None, layer.adapter)]
    return sorted(wanted, key=lambda layer: (layer.name, layer.adapter))


def _layers_of(name: str, module: Any, adapter: str) -> Iterator[AdapterLayer]:
    """The layers of one LoRA module. A bare parameter's go by its own name; PEFT wraps a second parameter of a module
    into the first."""
    if isinstance(module, ParamWrapper):
        while name.endswith(".base_layer"):
            name = name.removesuffix(".base_layer")
        name = f"{name}.{module.parameter_name}"
    kind, count = pairs_of(module, adapter)
    if count == 1 and not (kind == "experts" and module.get_param().dim() == 3):
        yield AdapterLayer(name, module, adapter)
        return
    for part in range(count):
        yield AdapterLayer(f"{name}.{part}", module, adapter, part)


def lora_layers(model: nn.Module, adapter_name: str = "default") -> list[AdapterLayer]:
    """Every LoRA layer that carries ``adapter_name``, sorted by canonical name, a tied head left out (``once_each``);
    ValueError where there is none."""
    found = adapter_layers(model, adapter_name)
    if not found:
        raise ValueError(
            f"adapter {adapter_name!r}: the model has no LoRA layer of that name; "
            "wrap it with peft.get_peft_model(model, LoraConfig(...)) first"
        )
    return once_each(found)


def once_each(layers: Sequence[AdapterLayer]) -> list[AdapterLayer]:
    """Without the heads whose factors are an embedding's, transposed (PEFT's ``ensure_weight_tying``): one reads the
    table as Wᵀ, the other as W, so that the embedding's A = (ξ/s) G Wᵀ is the head's B = (ξ/s) W Gᵀ, one pair."""
    embeddings = {(_place(x.parameter_B), _place(x.parameter_A)) for x in layers if x.is_embedding}
    return [x for x in layers if (_place(x.parameter_A), _place(x.parameter_B)) not in embeddings]


def _place(parameter: nn.Parameter) -> int:
    """Where it lies, the same for views; a parameter that lies nowhere (meta, a shard) is its own place."""
    return parameter.data_ptr() or id(parameter)


def check_untied(layers: Sequence[AdapterLayer]) -> None:
    """ValueError where two layers share a factor: one A of two weights can be a sketch of only one of them, and its
    gradient has two partners."""
    owners: dict[int, tuple[str, Any]] = {}
    for layer in layers:
        for parameter in (layer.parameter_A, layer.parameter_B):
            owner, module = owners.setdefault(_place(parameter), (layer.name, layer.module))
            if module is not layer.module:
                raise ValueError(
                    f"{layer.name}: shares a factor with {owner}: it can be a sketch of only one of two weights, and "
                    "has two partners to be scaled by; give each layer factors of its own"
                )


@torch.no_grad()
def snapshot_weights(model: nn.Module, names: set[str]) -> dict[str, Tensor]:
    """Copies of the weights [out, in] of the modules whose name ends in one of ``names`` ("q_proj", "to_out.0"), taken
    before any adapter exists; in the shape that ``AdapterLayer.weight`` will have. nn.MultiheadAttention: its in_proj
    under its own name, and its out_proj. A parameter's name ("experts.down_proj"): each of its experts' matrices."""
    return {name: weight.clone() for name, weight in weights_of(model, names)}


def weights_of(model: nn.Module, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """(canonical name, weight [out, in]) of the modules that ``snapshot_weights`` copies, one at a time."""
    prefix = wrapper_prefix(model)
    for name, module in model.named_modules():
        if any(f".{name}".endswith(f".{wanted}") for wanted in names):
            parts = {name: module}
            if isinstance(module, nn.MultiheadAttention):
                parts[f"{name}.out_proj"] = module.out_proj
            for key, part in parts.items():
                if _has_weight(part):
                    yield canonical_name(key, prefix), _as_matrix(part, isinstance(part, nn.Embedding | Conv1D))
        for own, parameter in module.named_parameters(name, recurse=False):
            if any(f".{own}".endswith(f".{wanted}") for wanted in names) and parameter.dim() in (2, 3):
                for expert, matrix in enumerate(matrices(module, parameter)):
                    key = canonical_name(own, prefix)
                    yield key if parameter.dim() == 2 else f"{key}.{expert}", matrix


def _has_weight(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight is not None
    return isinstance(getattr(module, "weight", None), Tensor)


def relative(difference: float, reference: float) -> float:
    """difference / reference, 0 / 0 being 0."""
    return difference / reference if reference > 0 else (0.0 if difference == 0 else float("inf"))

"""K adapters over one frozen base in one forward pass: the members of a bank.

A bank runs the base once on the members' rows, one member's after another's, and adds to each adapted layer two batched
products over the stacked factors. Rows of different members never meet, so gradients cannot mix. What a member trains
is a window on the stack: its own parameters, gradients and optimiser state are views of it, so that everything else
(proof, evaluation, checkpoint, saving) goes on with the ordinary PEFT model it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from nora.adapters.layers import AdapterLayer, lora_layers, trainable_parameters


class NotBankable(Exception):
    """These adapters cannot share a step; each of them can be trained alone."""


@dataclass(frozen=True)
class _Subtracted:
    """What PiSSA and OLoRA took out of the base, for the members that did: the pairs they started from."""

    members: Tensor  # [m] their places in the bank
    A: Tensor  # [m, r, in]
    B: Tensor  # [m, out, r], times −scaling


class BankedLinear(nn.Module):
    """y = W x + b for all rows, plus s_k B_k A_k x for those of member k.

    ``A`` [K, r, in], ``B`` [K, out, r], ``scaling`` [K, 1, 1].
    """

    def __init__(
        self, base: nn.Linear, A: nn.Parameter, B: nn.Parameter, scaling: Tensor, dropout: float,
        subtracted: _Subtracted | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base_layer, self.A, self.B = base, A, B
        self._scaling, self._dropout, self._subtracted = scaling, dropout, subtracted

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        rows = x.reshape(len(self.A), -1, x.shape[-1])  # [K, n, in]
        half = torch.is_autocast_enabled(x.device.type)
        if self._dropout or not half:  # autocast would take it back to 16 bits as it was: two passes for nothing
            rows = rows.to(self.A.dtype)
        dropped = F.dropout(rows, self._dropout, self.training) if self._dropout else rows
        low = torch.bmm(dropped, self.A.mT) * self._scaling
        wide = y.reshape(len(self.A), -1, y.shape[-1])
        fused = half or wide.dtype == low.dtype
        out = torch.baddbmm(wide, low, self.B.mT) if fused else wide + torch.bmm(low, self.B.mT)
        if self._subtracted is not None:
            own = self._subtracted
            taken = torch.bmm(torch.bmm(rows[own.members], own.A.mT), own.B.mT)
            out = out.index_add(0, own.members, taken.to(out.dtype))
        return out.reshape(y.shape).to(y.dtype)


@contextmanager
def one_draw(members: int, padded: tuple[int, int] | None = None, source: Tensor | None = None) -> Iterator[None]:
    """Dropout in here draws its mask by itself, for the rows that one member has, and gives it to all of them.

    ``padded`` and ``source``: those rows' number and length, and where each token that is computed lies in them (rows
    side by side). So neither the bank nor the packing changes a mask. On a CPU it is the very mask torch draws for a
    run alone; torch's fused kernel on an accelerator takes from its stream by the whole tensor's shape: there a run
    alone draws in here too.
    """
    torchs = F.dropout
    # A shape and no number, for torch.compile: it makes code anew for a number.
    room = None if padded is None else torch.empty(padded[0] * padded[1], 0)

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        each = input.reshape(members, -1, input.shape[-1])  # [members, tokens, width]
        tokens = each.shape[1] if room is None else room.shape[0]
        noise = each.new_empty(tokens, each.shape[2]).bernoulli_(1 - p).div_(1 - p)
        return (each * (noise if source is None else noise[source])).view(input.shape)

    F.dropout = dropout
    try:
        yield
    finally:
        F.dropout = torchs


Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""A and B of a start by the layer's name."""


class Bank(nn.Module):
    """The base with all members' adapters in it; called as one language model on K times the rows of one.

    ``base`` is what the members' models were made of, ``starts`` the pairs that a member's start subtracted from it
    (None where it left the base alone). ``stacks``: per trained parameter, in the members' order, all of them as one
    leaf [K, …] with its gradient. Raises NotBankable for members of different shapes and for layers that are no plain
    matrix.
    """

    def __init__(self, base: nn.Module, members: Sequence[PeftModel], starts: Sequence[Pairs | None]) -> None:
        super().__init__()
        self.members = list(members)  # no submodules: nn.Module does not look into a list
        if getattr(base.config, "attention_dropout", 0.0):
            raise NotBankable("attention_dropout: its masks are drawn inside the attention, for all rows at once")
        trained = [trainable_parameters(member) for member in members]
        if len({tuple((name, p.shape, p.dtype) for name, p in own.items()) for own in trained}) > 1:
            raise NotBankable("the members train parameters of different names, shapes or dtypes")
        banked = self._banked_layers(starts)
        self.stacks = {name: _stack([own[name] for own in trained]) for name in trained[0]}
        self.base = copy.deepcopy(base, {id(t): t for t in (*base.parameters(), *base.buffers())})
        for name, make in banked.items():
            parent, _, last = name.rpartition(".")
            holder: Any = self.base.get_submodule(parent)
            setattr(holder, last, make(getattr(holder, last)))

    def __len__(self) -> int:
        return len(self.members)

    def get_base_model(self) -> nn.Module:
        """The language model on K times the rows."""
        return self.base

    def get_prompt(self, rows: int) -> DynamicCache | None:
        """The members' prefixes one after another, None for LoRA; ``rows`` are those of all members."""
        if not isinstance(self.members[0].active_peft_config, PrefixTuningConfig):
            return None
        each: list[Any] = [member.get_prompt(rows // len(self)) for member in self.members]
        layers = zip(*(cache.layers for cache in each), strict=True)
        return DynamicCache(
            [(torch.cat([c.keys for c in layer]), torch.cat([c.values for c in layer])) for layer in layers]
        )

    def _banked_layers(self, starts: Sequence[Pairs | None]) -> dict[str, Callable[[nn.Linear], BankedLinear]]:
        """Per adapted layer, by its name in the base, what makes its banked form; nothing is changed here."""
        if not isinstance(self.members[0].active_peft_config, LoraConfig):
            return {}
        names = {id(p): name for name, p in trainable_parameters(self.members[0]).items()}
        made: dict[str, Callable[[nn.Linear], BankedLinear]] = {}
        for layers in zip(*(lora_layers(member) for member in self.members), strict=True):
            first = layers[0]
            why = next((why for layer in layers if (why := _not_plain(layer.module))), None)
            if why is not None:
                raise NotBankable(f"{first.name}: {why}")
            subtracted = _subtracted(layers, starts)
            made[first.name] = partial(self._banked, layers, names, subtracted)
        return made

    def _banked(
        self, layers: Sequence[AdapterLayer], names: Mapping[int, str], subtracted: _Subtracted | None, base: nn.Linear
    ) -> BankedLinear:
        A, B = (self.stacks[names[id(p)]] for p in (layers[0].parameter_A, layers[0].parameter_B))
        scaling = torch.tensor([layer.scaling for layer in layers], dtype=A.dtype, device=A.device)[:, None, None]
        dropout = getattr(layers[0].module.lora_dropout["default"], "p", 0.0)
        return BankedLinear(base, A, B, scaling, dropout, subtracted)


@torch.no_grad()
def _stack(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    """One leaf [K, …] with a gradient of zeros; the parameters and their gradients become views of it."""
    stack = nn.Parameter(torch.stack([p.detach() for p in parameters]))
    stack.grad = torch.zeros_like(stack)
    for parameter, value, gradient in zip(parameters, stack.detach(), stack.grad, strict=True):
        parameter.data, parameter.grad = value, gradient
    return stack


def _not_plain(module: Any) -> str | None:
    """Why a LoRA layer is more than W x + s B A x, None if it is that."""
    if type(module) is not LoraLinear or type(module.get_base_layer()) is not nn.Linear:
        return f"given {type(module.get_base_layer()).__name__}, required torch.nn.Linear"
    if module.active_adapters != ["default"] or len(module.lora_A) > 1 or module.merged:
        return "given several adapters or a merged one, required one that is active"
    if module.lora_variant or any(module.lora_bias.values()):
        return "given a variant of LoRA (DoRA, a bias, …), required the plain form"
    return None


def _subtracted(layers: Sequence[AdapterLayer], starts: Sequence[Pairs | None]) -> _Subtracted | None:
    """The pairs that are missing from the members' bases in one layer."""
    moved = [(k, start[layer.name]) for k, (layer, start) in enumerate(zip(layers, starts, strict=True)) if start]
    if not moved:
        return None
    where, dtype = layers[0].A.device, layers[0].A.dtype
    return _Subtracted(
        torch.tensor([k for k, _ in moved], device=where),
        torch.stack([A for _, (A, _) in moved]).to(where, dtype),
        torch.stack([-layers[k].scaling * B for k, (_, B) in moved]).to(where, dtype),
    )

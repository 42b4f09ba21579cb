"""Any start there is, by name, for anybody's PEFT model, with its proof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from nora.adapters import inits
from nora.adapters.data import Loss
from nora.adapters.initialize import Option, check_unmoved, check_weight, initialize_
from nora.adapters.layers import lora_layers
from nora.adapters.nystrom import check_fresh
from nora.adapters.proof import InitReport, prove_factors, prove_init


def start_(
    model: nn.Module,
    init: str,
    *,
    batches: Sequence[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    adapter_name: str = "default",
    overwrite: bool = False,
    size_of: str | None = None,
    **options: Option,
) -> InitReport:
    """Starts a LoRA adapter by the named init ("pissa", "eva", "lora_one", …; ``inits.names()``) and proves it.

    ``model`` is a PEFT model, or a module with PEFT LoRA layers, made with PEFT's ordinary start, before its optimiser.
    Data-driven starts need ``batches`` of training rows: each is given to ``loss(model, batch)``, a scalar tensor, in
    eval mode with the adapter off; left out, ``model(**batch).loss``. ``options`` are the init's own (its file's
    ``OPTIONS``), ``size_of`` ("kaiming", "gaussian") scales the one non-zero factor of a start to the expected size of
    that start's A. Starts that move the base (PiSSA, OLoRA, MiLoRA, CorDA, LoRA-GA) take s B A off it here, from a
    copy of the adapted weights; save such an adapter with ``save_adapter(…, at_start=factors_at_start(model))``.

    Look at ``report.passed``. Raises ValueError, the model left as it was, as ``nystrom_init_`` does, for an unknown
    init or option, and for rows that are missing, give no finite loss or no gradient.
    """
    module = inits.load(init)
    layers = lora_layers(model, adapter_name)
    check_unmoved(model, layers)
    for layer in layers:
        check_weight(layer)
    if not overwrite:
        check_fresh(layers)
    pretrained = {x.pretrained_name: x.whole_weight.clone() for x in layers} if module.MOVES_BASE else None
    start = initialize_(
        model, init, seed=seed, adapter_name=adapter_name, batches=batches, loss=loss, size_of=size_of, **options
    )
    if pretrained is None:
        return prove_factors(model, start, adapter_name=adapter_name)
    return prove_init(model, start, adapter_name=adapter_name, pretrained=pretrained)

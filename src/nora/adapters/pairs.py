"""The pairs of factors an optimiser trains, found by module type."""

from __future__ import annotations

from torch import nn

from nora.adapters.layers import AdapterLayer, adapter_layers, why_not_two_matrices


def trainable_pairs(model: nn.Module) -> list[AdapterLayer]:
    """Every LoRA layer, of any adapter, whose two factors are both trained; sorted by name.

    Raises ValueError where only one factor of a pair is trained (its gradient has no partner to be scaled with),
    where a trained adapter is not a pair of matrices, and where there is no pair at all.
    """
    pairs = []
    for layer in adapter_layers(model):
        trained = layer.A.requires_grad, layer.B.requires_grad
        if not any(trained):
            continue
        if not all(trained):
            frozen = "B" if trained[0] else "A"
            raise ValueError(
                f"{layer.name}: factor {frozen} of adapter {layer.adapter!r} is frozen and its partner is trained; "
                "the preconditioner scales each factor by its partner and needs both trained, or neither"
            )
        reason = why_not_two_matrices(layer)
        if reason is not None:
            raise ValueError(f"{layer.name}: {reason}; freeze this adapter or leave the layer out of target_modules")
        pairs.append(layer)
    if not pairs:
        raise ValueError(
            "the model has no trainable LoRA pair, so there is nothing to precondition; wrap it with "
            "peft.get_peft_model(model, LoraConfig(...)) first, and check which parameters require gradients"
        )
    return pairs

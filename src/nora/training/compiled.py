"""``exec.compile=true``: a model's layers as ``torch.compile`` makes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

_log = logging.getLogger(__name__)


@contextmanager
def compiled_layers(model: nn.Module) -> Iterator[None]:
    """Inside, the layers that a model repeats run as ``torch.compile`` makes them: one compilation for all of them and
    for every length. Random numbers are drawn as uncompiled. Where that fails, all run as they are, and a line says so.
    """
    kinds = {name for m in model.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    layers = [m for m in model.modules() if type(m).__name__ in kinds]
    layers = [m for m in layers if not any(type(inner).__name__ in kinds for inner in m.modules() if inner is not m)]

    working = True

    def guarded(layer: nn.Module, compiled: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal working
            if working and torch.is_grad_enabled():  # answers come in too many shapes to be worth it
                try:
                    return compiled(*arguments, **named)
                except TorchDynamoException as error:
                    working = False
                    reason = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
                    _log.warning("exec.compile: the layers run uncompiled; torch.compile says: %s", reason)
            return layer._call_impl(*arguments, **named)

        return call

    for layer in layers:
        layer.compile(dynamic=True, options={"fallback_random": True})
        layer._compiled_call_impl = guarded(layer, layer._compiled_call_impl)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None

"""A pytest plugin for PEFT's own tests: every plain LoRA adapter that they make gets our start in place of PEFT's, and
``create_riemannian_optimizer`` is NoRA+. Loaded by ``pytest -p ours`` in a process of its own (test_peft.py).

``NORA_PEERS=start`` calls ``nystrom_init_`` after PEFT has put the adapter in; ``NORA_PEERS=proposal`` instead patches
PEFT as contrib/peft proposes and asks for ``init_lora_weights="nystrom"``. Where a test wants an adapter that already
does something (``init_lora_weights=False``) A is ours and B stays what PEFT drew.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft.optimizers
import peft.optimizers.riemannian
import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTuner

from nora.adapters import create_nora_plus_optimizer, lora_layers, nystrom_init_
from nora.adapters.layers import adapter_layers

_INJECT = BaseTuner.inject_adapter


def _wanted(config: Any, options: dict[str, Any]) -> bool:
    """Whether this adapter is started now: PEFT's plain start is asked for, and no checkpoint is about to be loaded."""
    plain = type(config) is LoraConfig and config.init_lora_weights in (True, False)
    return plain and not config.inference_mode and not options.get("low_cpu_mem_usage")


@contextmanager
def _by_our_start(model: Any, config: LoraConfig, adapter_name: str) -> Iterator[None]:
    yield
    layers = lora_layers(model, adapter_name)
    drawn = {id(layer.parameter_B): layer.parameter_B.detach().clone() for layer in layers}
    report = nystrom_init_(model, xi=0.1, adapter_name=adapter_name, overwrite=not config.init_lora_weights)
    assert report.passed, report.problems
    if not config.init_lora_weights:
        for layer in layers:
            layer.parameter_B.data.copy_(drawn[id(layer.parameter_B)])


@contextmanager
def _by_the_proposal(model: Any, config: LoraConfig, adapter_name: str) -> Iterator[None]:
    asked = config.init_lora_weights
    config.init_lora_weights = "nystrom"  # type: ignore[assignment]
    try:
        yield
    finally:
        config.init_lora_weights = asked
    if not asked:
        for layer in adapter_layers(model, adapter_name):
            if layer.is_embedding:  # the proposal leaves its A at zero and its B drawn
                layer.parameter_A.data.normal_()
            else:
                bound = layer.rank**-0.5  # as nn.Linear draws
                layer.parameter_B.data.uniform_(-bound, bound)


_START = _by_the_proposal if os.environ["NORA_PEERS"] == "proposal" else _by_our_start


@functools.wraps(_INJECT)
def _inject_adapter(self: BaseTuner, model: Any, adapter_name: str, *args: Any, **options: Any) -> Any:
    config = self.peft_config[adapter_name]
    if not _wanted(config, options):
        return _INJECT(self, model, adapter_name, *args, **options)
    with _START(model, config, adapter_name):
        return _INJECT(self, model, adapter_name, *args, **options)


def _nora_plus(model: Any, optimizer_cls: Any, *, reg: float = 1e-2, **options: Any) -> Any:
    return create_nora_plus_optimizer(model, optimizer_cls, damping=reg, **options)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ["NORA_PEERS"] == "proposal":
        path = Path(__file__).resolve().parents[2] / "contrib/peft/nystrom_init.py"
        source: Any = importlib.util.spec_from_file_location("nystrom_init", path)
        module = importlib.util.module_from_spec(source)
        source.loader.exec_module(module)
        module.apply()
    BaseTuner.inject_adapter = _inject_adapter  # type: ignore[method-assign]
    for place in (peft.optimizers, peft.optimizers.riemannian):
        place.create_riemannian_optimizer = _nora_plus  # type: ignore[attr-defined]
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A test that wants a model of the Hub, which no run of ours reaches, is skipped for that reason."""
    report = yield
    if report.failed and call.excinfo is not None and _is_of_the_hub(call.excinfo.value):
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, "Skipped: needs the Hub")
    return report


def _is_of_the_hub(error: BaseException) -> bool:
    words = str(error)
    return "huggingface.co" in words or "hf.co" in words or "snapshot folder" in words


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Of the matrix of all methods keep LoRA's."""
    kept = [item for item in items if _is_of_lora(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _is_of_lora(item)])
    items[:] = kept


def _is_of_lora(item: Any) -> bool:
    params = getattr(item, "callspec", None)
    classes = {value for value in params.params.values() if isinstance(value, type)} if params else set()
    configs = {cls for cls in classes if cls.__name__.endswith("Config")}
    return not configs or configs == {LoraConfig}

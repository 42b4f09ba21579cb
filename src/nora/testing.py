"""``check_init``: the contract of an init (``nora.adapters.inits``), for anybody's own test.

from nora.testing import check_init
import mine

def test_it() -> None:
    check_init(mine)
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from nora import starts, streams
from nora.adapters import initialize, initialize_, lora_layers, prove_init, snapshot_weights
from nora.adapters.initialize import Start

_RANK = 4
_NAME = "checked"
_SHAPES = ((12, 20), (20, 12), (16, 16))


def _require(true: object, message: str) -> None:
    if not true:
        raise AssertionError(message)


class _Two(nn.Module):
    """Two linear maps, ``first`` and ``second``, of an in and an out side that differ."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first = nn.Linear(in_features, out_features, bias=False)
        self.second = nn.Linear(out_features, in_features, bias=False)
        for layer in (self.first, self.second):
            layer.weight = nn.Parameter(0.3 * torch.randn(layer.weight.shape, generator=draw), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def _adapted(shape: tuple[int, int], module: ModuleType) -> tuple[Any, dict[str, Any]]:
    """A fresh model with an adapter, and what ``prove_init`` compares it with."""
    base = _Two(*shape)
    x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(1))
    known = {
        "inputs": {"x": x},
        "pretrained": snapshot_weights(base, {"first", "second"}),
        "base_output": base(x).detach(),
    }
    with streams.seeded(0, "peft"):
        config = LoraConfig(
            r=_RANK, lora_alpha=2 * _RANK, target_modules=["first", "second"], init_lora_weights=module.PEFT_INIT
        )
        return get_peft_model(base, config), known


def _started(model: Any, shape: tuple[int, int], seed: int = 0) -> Start:
    draw = torch.Generator().manual_seed(2)
    rows = [torch.randn(8, shape[1], generator=draw) for _ in range(3)]
    target = torch.randn(8, shape[1], generator=draw)
    return initialize_(model, _NAME, seed=seed, batches=rows, loss=lambda m, x: (m(x) - target).square().mean())


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def check_init(module: ModuleType) -> None:
    """AssertionError, with what is wrong, where the module does not keep the contract of ``nora.adapters.inits``.

    The init is run: on three shapes of layer its factors are of the right shape and dtype, finite and repeatable, it
    touches nothing but the factors (and the base where it says so) and no generator, the proof of its start passes, and
    the proof of a version that did nothing does not.
    """
    _check_attributes(module)
    with starts.lent(_NAME, module):
        for shape in _SHAPES:
            _check_start(module, shape)
        _check_that_nothing_is_noticed(module)


def _check_attributes(module: ModuleType) -> None:
    _require(module.__doc__, "the file must say what the start is (a docstring)")
    for name in ("PEFT_INIT", "MOVES_BASE", "OPTIONS", "factors"):
        _require(hasattr(module, name), f"{name} is missing")
    _require(isinstance(module.MOVES_BASE, bool), "MOVES_BASE must be True or False")
    literals = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
    named = {ast.unparse(n.targets[0] if isinstance(n, ast.Assign) else n.target): n.value
             for n in literals if isinstance(n, ast.Assign | ast.AnnAssign)}  # fmt: skip
    for name in ("MOVES_BASE", "OPTIONS"):
        try:
            ast.literal_eval(named[name])  # type: ignore[arg-type]
        except (KeyError, ValueError):
            raise AssertionError(f"{name} must be a literal at the top of the file: a plan reads it there") from None
    parameters = dict(inspect.signature(module.factors).parameters)
    first = list(parameters)[:4]
    _require(first == ["weight", "rank", "scaling", "generator"], f"factors must begin with weight, rank, scaling, "
             f"generator, given {', '.join(first)}")  # fmt: skip
    takes_data = "data" in parameters
    _require(takes_data == hasattr(module, "statistics"), "factors takes data if, and only if, there is a statistics")
    _require(
        hasattr(module, "DATA") == takes_data, "DATA must name what is taken of the rows, where factors takes data"
    )
    own = {key: p.default for key, p in list(parameters.items())[4:] if key != "data"}
    _require(own == module.OPTIONS, f"OPTIONS must be factors' own keywords with their defaults, {own}")


def _check_start(module: ModuleType, shape: tuple[int, int]) -> None:
    model, known = _adapted(shape, module)
    before, random = _state(model), torch.get_rng_state()
    start = _started(model, shape)
    _require(torch.equal(random, torch.get_rng_state()), "the start draws from torch's global generator")
    changed = {key for key, value in _state(model).items() if not torch.equal(value, before[key])}
    base = {key for key in changed if "lora_" not in key}
    at_construction = isinstance(module.PEFT_INIT, str) and module.MOVES_BASE
    _require(bool(base) == (module.MOVES_BASE and not at_construction), "MOVES_BASE says otherwise than what happens: "
             f"{'the' if base else 'no'} frozen weight changed")  # fmt: skip
    for layer in lora_layers(model):
        out_features, in_features = known["pretrained"][layer.name].shape
        for what, factor, wanted in (
            ("A", layer.A, (_RANK, in_features)), ("B", layer.B, (out_features, _RANK))
        ):  # fmt: skip
            _require(tuple(factor.shape) == wanted, f"{what}: given {tuple(factor.shape)}, required {wanted}")
            _require(factor.dtype == torch.float32, f"{what}: given {factor.dtype}, required float32")
            _require(torch.isfinite(factor).all(), f"{what} is not finite")
    report = prove_init(model, start, **known)
    _require(report.passed, f"the proof of the start does not pass: {'; '.join(report.problems[:2])}")
    again, _ = _adapted(shape, module)
    _started(again, shape)
    one, other = _state(model), _state(again)
    _require(all(torch.equal(one[key], other[key]) for key in one), "the same seed gives two starts")


def _check_that_nothing_is_noticed(module: ModuleType) -> None:
    """A version that leaves PEFT's ordinary factors where they are must not pass its proof."""
    ordinary = ModuleType("ordinary")
    ordinary.PEFT_INIT = True  # type: ignore[attr-defined]
    model, known = _adapted(_SHAPES[0], ordinary)
    with _without_effect(module):
        start = _started(model, _SHAPES[0])
    if module.MOVES_BASE and not hasattr(module, "make"):
        model, known = _adapted(_SHAPES[0], ordinary)
    report = prove_init(model, start, **known)
    _require(not report.passed, "a version of the start that did nothing passes its proof: factors knows no difference")


@contextmanager
def _without_effect(module: ModuleType) -> Any:
    """Inside, nothing is written to a layer."""
    write: Callable[..., None] = initialize.write_factors
    make = getattr(module, "make", None)
    initialize.write_factors = lambda layer, factors: None
    if make is not None:
        module.make = lambda layer, data, **options: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        initialize.write_factors = write
        if make is not None:
            module.make = make  # type: ignore[attr-defined]

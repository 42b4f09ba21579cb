"""Ten situations that a stranger's model may be in, written down before they were tried:

1. the model is inside DataParallel when it is started: the draw and the proof are those of the bare model;
2. it was compiled, and has run, before it is started: the compiled code reads the new factors;
3. torch's default dtype is float64 and its default device another: the same draw;
4. the start happens in ``torch.inference_mode``: the factors train afterwards;
5. model and optimiser are deep-copied together: the copy steps as the original, which stands still;
6. accelerate prepares model and optimiser: the steps are those without it;
7. one layer object serves two places (ALBERT): it is started once, and proved at both;
8. a part of the model is really called ``module`` or ``base_model``: draws differ by place, the file reloads exactly;
9. two fresh adapters are active at once: the output is the base's, and each is proved;
10. the base weight lies in another memory order (transposed, channels last): the same sketch;
11. the head has one output, r above it: it starts, is saved, and NoRA+ says which directions are empty;
12. the adapter was merged and unmerged: what rounding did to the base is reported, not hidden.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from nora.adapters import (
    create_nora_plus_optimizer,
    lora_layers,
    nystrom_init_,
    prove_init,
    save_adapter,
    snapshot_weights,
)
from twins import one_linear_with_lora, randomize_factors, tiny_opt, with_lora

IDS = torch.tensor([[1, 5, 9, 23]])
X = torch.randn(8, 16, generator=torch.Generator().manual_seed(9))


def _factors(model: nn.Module) -> list[Tensor]:
    return [layer.A.detach().clone() for layer in lora_layers(model)]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _started(model: Any) -> Any:
    report = nystrom_init_(model, xi=0.1)
    assert report.passed, report.problems
    return report.start


def test_inside_data_parallel() -> None:
    model, bare = with_lora(tiny_opt()), with_lora(tiny_opt())
    wrapped = nn.DataParallel(model)
    start = _started(wrapped)
    _started(bare)
    assert _same(_factors(wrapped), _factors(bare))
    report = prove_init(
        wrapped, start, inputs={"input_ids": IDS}, pretrained=snapshot_weights(tiny_opt(), {"q_proj", "v_proj"})
    )
    assert report.passed and report.output_difference == 0.0, report.problems


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_and_run_before_the_start() -> None:
    model, bare = one_linear_with_lora(16, 16), one_linear_with_lora(16, 16)
    compiled: Any = torch.compile(model, backend="eager")
    compiled(X)
    start = _started(compiled)
    _started(bare)
    assert _same(_factors(model), _factors(bare)) and prove_init(compiled, start, inputs={"x": X}).passed
    randomize_factors(model)
    torch.testing.assert_close(compiled(X), model(X), rtol=0, atol=0)
    assert not prove_init(compiled, start).passed


def test_another_default_dtype_and_device() -> None:
    model, bare = with_lora(tiny_opt()), with_lora(tiny_opt())
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            start = _started(model)
            assert prove_init(model, start).passed
    finally:
        torch.set_default_dtype(torch.float32)
    _started(bare)
    assert _same(_factors(model), _factors(bare))


def test_in_inference_mode() -> None:
    model, bare = one_linear_with_lora(16, 16), one_linear_with_lora(16, 16)
    with torch.inference_mode():
        start = _started(model)
        assert prove_init(model, start, inputs={"x": X}).passed
    _started(bare)
    for one in (model, bare):
        optimizer = create_nora_plus_optimizer(one, torch.optim.AdamW, lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            one(X).square().mean().backward()
            optimizer.step()
    assert _same(_factors(model), _factors(bare)) and bool(lora_layers(model)[0].B.any())


def test_model_and_optimiser_copied_together() -> None:
    def step(model: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()

    model = one_linear_with_lora(16, 16)
    _started(model)
    optimizer = create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-2)
    step(model, optimizer)
    other, its_optimizer = copy.deepcopy((model, optimizer))
    before = _factors(model)
    step(other, its_optimizer)
    assert _same(before, _factors(model)), "the original stands still"
    assert not _same(before, _factors(other))
    step(model, optimizer)
    assert _same(_factors(model), _factors(other))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_prepared_by_accelerate(accumulate: int) -> None:
    from accelerate import Accelerator

    def trained(accelerator: Any) -> list[Tensor]:
        model = one_linear_with_lora(16, 16)
        _started(model)
        optimizer: Any = create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-2, max_grad_norm=1e-3)
        prepared: Any = model
        if accelerator is not None:
            prepared, optimizer = accelerator.prepare(model, optimizer)
        for i in range(3 * accumulate):
            loss = prepared(X[i % 2 :: 2]).square().mean()
            if accelerator is None:
                (loss / accumulate).backward()
                if (i + 1) % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
            else:
                with accelerator.accumulate(prepared):
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
        return [*_factors(model), lora_layers(model)[0].B.detach().clone()]

    assert _same(trained(Accelerator(cpu=True, gradient_accumulation_steps=accumulate)), trained(None))


class _Shared(nn.Module):
    """The same Linear twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Linear(16, 16)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(torch.relu(self.first(x)))
        return output


def test_one_layer_in_two_places(tmp_path: Path) -> None:
    model = get_peft_model(_Shared(), LoraConfig(r=4, target_modules=["first", "second"]))  # type: ignore[arg-type]
    start = _started(model)
    report = prove_init(model, start, inputs={"x": X})
    assert report.passed and report.output_difference == 0.0
    randomize_factors(model)
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(_Shared(), str(tmp_path))  # type: ignore[arg-type]
    torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=0)


class _Named(nn.Module):
    """Parts called as wrappers call theirs."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = nn.ModuleDict({"q": nn.Linear(16, 16)})
            self.base_model = nn.ModuleDict({"model": nn.ModuleDict({"q": nn.Linear(16, 16)})})
            self.q = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.q(x) + self.module["q"](x) + self.base_model["model"]["q"](x)
        return output


def test_parts_called_as_wrappers_call_theirs(tmp_path: Path) -> None:
    model = get_peft_model(_Named(), LoraConfig(r=4, target_modules=["q"]))  # type: ignore[arg-type]
    _started(model)
    drawn = []
    for layer in lora_layers(model):
        drawn.append(torch.linalg.lstsq(layer.weight.T, layer.A.detach().T).solution)
    assert len(drawn) == 3
    randomize_factors(model)
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(_Named(), str(tmp_path))  # type: ignore[arg-type]
    torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=0)
    for i in range(3):
        for j in range(i):
            assert not torch.allclose(drawn[i], drawn[j], rtol=0.1, atol=1e-2), "each place has its own draw"


def test_two_fresh_adapters_at_once() -> None:
    model = with_lora(tiny_opt())
    base = tiny_opt()(input_ids=IDS).logits
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "k_proj"]))
    model.base_model.set_adapter(["default", "other"])
    starts = {name: nystrom_init_(model, xi=0.1, seed=3, adapter_name=name).start for name in ("default", "other")}
    assert torch.equal(model(input_ids=IDS).logits, base)
    for name, start in starts.items():
        report = prove_init(model, start, adapter_name=name, inputs={"input_ids": IDS})
        assert report.passed and report.output_difference == 0.0, report.problems


def test_another_memory_order() -> None:
    one, other = one_linear_with_lora(16, 16), one_linear_with_lora(16, 16)
    held = lora_layers(other)[0].held_weight
    held.data = held.data.T.contiguous().T
    assert not held.is_contiguous()
    for model in (one, other):
        start = _started(model)
        assert prove_init(model, start, inputs={"x": X}).passed
    torch.testing.assert_close(_factors(one), _factors(other), rtol=1e-6, atol=1e-7)

    def convolution(order: torch.memory_format) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Conv2d(4, 6, 3)).to(memory_format=order)
        return get_peft_model(net, LoraConfig(r=4, target_modules=["0"]))  # type: ignore[arg-type]

    one, other = convolution(torch.contiguous_format), convolution(torch.channels_last)
    _started(one)
    _started(other)
    torch.testing.assert_close(_factors(one), _factors(other), rtol=1e-6, atol=1e-7)


def test_a_head_with_one_output(tmp_path: Path) -> None:
    def head() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(16, 1))

    model = get_peft_model(head(), LoraConfig(r=4, target_modules=["0"]))  # type: ignore[arg-type]
    start = _started(model)
    assert prove_init(model, start, inputs={"input": X}).output_difference == 0.0
    with pytest.warns(UserWarning, match="3 directions of its rank are empty"):
        create_nora_plus_optimizer(model, torch.optim.SGD, lr=1e-3)
    randomize_factors(model)
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(head(), str(tmp_path))  # type: ignore[arg-type]
    torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=0)


def test_what_unmerging_rounds_away_is_reported() -> None:
    kept = snapshot_weights(tiny_opt(), {"q_proj", "v_proj"})
    model = with_lora(tiny_opt())
    start = _started(model)
    assert prove_init(model, start, pretrained=kept).passed
    factors = [(layer.A.detach().clone(), layer.B.detach().clone()) for layer in lora_layers(model)]
    randomize_factors(model)
    model.merge_adapter()
    assert not prove_init(model, start, pretrained=kept).passed
    model.unmerge_adapter()
    with torch.no_grad():
        for layer, (A, B) in zip(lora_layers(model), factors, strict=True):
            layer.A.copy_(A)
            layer.B.copy_(B)
    report = prove_init(model, start, pretrained=kept)
    off = [module.base_relative_difference for module in report.modules]
    assert (
        not report.passed and 0 < max(off) < 1e-6 and all("the frozen weight is off by" in p for p in report.problems)
    )

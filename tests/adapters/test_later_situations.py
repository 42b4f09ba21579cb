"""Twelve more situations, written down before they were tried; those marked * were mended by it:

1.* an adapter is added in mid-training and its factors given to ``add_param_group``: NoRA+ takes them up;
2.* an adapter is deleted between two steps: the others go on;
3.* the model is T5, whose table has four readers, tied by PEFT: no file of it loads right, so none is written;
4.* diffusers keeps the base, and so the new adapter, in float8: it is told to cast it, and starts then;
5.* lora_alpha is 0: said at the start, not a division by zero;
6.* accelerate has offloaded the weights: the line says when to start;
7. two started adapters are combined by ``add_weighted_adapter``: saved, they are what they were;
8. PEFT's other variants (aLoRA, VeLoRA, MonteCLoRA, a bias in B): started, proved, trained, read back;
9. a saved adapter is loaded to be trained on: not started anew, and its next step is the one it would have taken;
10. LoRA beside LoHa in a mixed model: the LoRA is started and trained;
11. merged and adapted again, cycle after cycle (ReLoRA): each start is of the weight as it is then;
12. A and B have their own learning rates (LoRA+), the step is compiled, or the state came from a plain optimiser.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from nora.adapters import create_nora_plus_optimizer, lora_layers, nystrom_init_, prove_init, save_adapter
from nora.adapters.preconditioner import damped_inverse
from twins import randomize_factors, same_bytes, snapshot, tiny_llama, with_lora

IDS = torch.arange(3, 13)[None]


def _backward(model: Any) -> None:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()


def _step(model: Any, optimizer: Any) -> None:
    _backward(model)
    optimizer.step()


def _started(**options: Any) -> Any:
    model = with_lora(tiny_llama(), **options)
    assert nystrom_init_(model, xi=0.1).passed
    return model


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=IDS).logits
    return logits


def _same(one: Any, other: Any) -> bool:
    pairs = zip(lora_layers(one), lora_layers(other), strict=True)
    return all(torch.equal(a.A, b.A) and torch.equal(a.B, b.B) for a, b in pairs)


@pytest.mark.parametrize("copied", [False, True])
def test_an_adapter_that_comes_later(copied: bool) -> None:
    model = _started()
    optimizer: Any = create_nora_plus_optimizer(model, torch.optim.SGD, lr=0.1)
    _step(model, optimizer)
    if copied:
        model, optimizer = copy.deepcopy((model, optimizer))
    model.add_adapter("late", LoraConfig(r=4, target_modules=["k_proj"]))
    nystrom_init_(model, xi=0.1, adapter_name="late")
    model.set_adapter("late")
    (late,) = lora_layers(model, "late")
    optimizer.add_param_group({"params": [late.parameter_A]})  # as LoRA+ gives them, one after the other
    _backward(model)
    plain = late.parameter_B.grad.clone()
    with pytest.raises(ValueError, match="no longer the model's LoRA factors"):
        optimizer.step()
    optimizer.add_param_group({"params": [late.parameter_B], "lr": 0.2})
    P = damped_inverse((late.A @ late.A.T).detach()[None], damping=1e-6, normalize="frobenius")[0]
    optimizer.step()
    torch.testing.assert_close(late.B, -0.2 * plain @ P)


def test_an_adapter_that_is_deleted() -> None:
    model, bare = _started(), _started()
    model.add_adapter("gone", LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=True))
    model.base_model.set_adapter(["default", "gone"])
    optimizer, its = (create_nora_plus_optimizer(m, torch.optim.SGD, lr=0.1) for m in (model, bare))
    model.delete_adapter("gone")
    for one, step in ((model, optimizer), (bare, its)):
        _step(one, step)
    assert _same(model, bare)


def _t5() -> Any:
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return T5ForConditionalGeneration(config).eval()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_table_with_four_readers(tmp_path: Path) -> None:
    config: Any = {"r": 4, "target_modules": ["shared", "lm_head"]}
    tied = get_peft_model(_t5(), LoraConfig(**config, ensure_weight_tying=True))
    assert nystrom_init_(tied, xi=0.1).passed
    with pytest.raises(ValueError, match=r"embed_tokens: given a second reader .*ensure_weight_tying=False"):
        save_adapter(tied, tmp_path / "saved")
    assert not list(tmp_path.iterdir())
    model = get_peft_model(_t5(), LoraConfig(**config))
    assert nystrom_init_(model, xi=0.1).passed
    randomize_factors(model)
    save_adapter(model, tmp_path / "saved")
    loaded = PeftModel.from_pretrained(_t5(), str(tmp_path / "saved"))
    with torch.no_grad():
        wanted, found = (m.eval()(input_ids=IDS, labels=IDS).logits for m in (model, loaded))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_base_in_float8() -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model: Any = get_peft_model(tiny_llama().to(torch.float8_e4m3fn), config, autocast_adapter_dtype=False)
    before = [(layer.A.clone(), layer.B.clone()) for layer in lora_layers(model)]
    with pytest.raises(ValueError, match="given factors of torch.float8_e4m3fn.*cast_training_params"):
        nystrom_init_(model, xi=0.1)
    for layer, (A, B) in zip(lora_layers(model), before, strict=True):
        assert torch.equal(layer.A.float(), A.float()) and torch.equal(layer.B.float(), B.float())
        for factor in (layer.parameter_A, layer.parameter_B):
            factor.data = factor.data.float()
    report = nystrom_init_(model, xi=0.1)
    assert report.passed and prove_init(model, report.start).passed


def test_alpha_of_zero() -> None:
    model = with_lora(tiny_llama(), alpha=0)
    with pytest.raises(ValueError, match="q_proj: given lora_alpha=0, which adds nothing"):
        nystrom_init_(model, xi=0.1)


def test_offloaded_weights() -> None:
    from accelerate import cpu_offload

    model: Any = cpu_offload(with_lora(tiny_llama()), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="meta device.*start the adapter before the model is dispatched"):
        nystrom_init_(model, xi=0.1)


@pytest.mark.parametrize(("how", "tolerance"), [("cat", 0.0), ("linear", 0.0), ("svd", 1e-6)])
def test_two_adapters_combined(how: str, tolerance: float, tmp_path: Path) -> None:
    model: Any = _started()
    model.add_adapter("other", LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    assert nystrom_init_(model, xi=0.1, seed=1, adapter_name="other").passed
    randomize_factors(model)
    model.add_weighted_adapter(["default", "other"], [0.7, 0.5], "both", combination_type=how)
    model.set_adapter("both")
    save_adapter(model, tmp_path, adapter_name="both")
    loaded = PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    torch.testing.assert_close(_logits(loaded), _logits(model), rtol=0, atol=tolerance)


VARIANTS: dict[str, Any] = {
    "aLoRA": {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"},
    "VeLoRA": {"velora_config": VeloraConfig()},
    "MonteCLoRA": {"monteclora_config": MontecloraConfig()},
    "a bias": {"lora_bias": True, "bias": "none"},
}


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed:peft.utils.warning.PeftWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_pefts_other_variants(variant: str, tmp_path: Path) -> None:
    model = _started(**VARIANTS[variant])
    assert prove_init(model, inputs={"input_ids": IDS}).passed
    before = [layer.B.detach().clone() for layer in lora_layers(model)]
    optimizer = create_nora_plus_optimizer(model.train(), torch.optim.AdamW, lr=1e-2)
    for _ in range(3):
        _step(model, optimizer)
    assert all(not torch.equal(layer.B, B) for layer, B in zip(lora_layers(model), before, strict=True))
    save_adapter(model, tmp_path)
    torch.testing.assert_close(
        _logits(PeftModel.from_pretrained(tiny_llama(), str(tmp_path))), _logits(model), rtol=0, atol=0
    )


def test_a_saved_adapter_is_trained_on(tmp_path: Path) -> None:
    model = _started()
    optimizer = create_nora_plus_optimizer(model, torch.optim.SGD, lr=1.0)
    for _ in range(3):
        _step(model, optimizer)
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), str(tmp_path), is_trainable=True).eval()
    before = snapshot(loaded)
    with pytest.raises(ValueError, match="both factors of adapter 'default' are non-zero"):
        nystrom_init_(loaded, xi=0.1)
    assert same_bytes(before, snapshot(loaded))
    _step(model, optimizer)
    _step(loaded, create_nora_plus_optimizer(loaded, torch.optim.SGD, lr=1.0))
    assert _same(model, loaded)


def test_lora_beside_loha() -> None:
    model: Any = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"]), mixed=True)
    model.add_adapter("loha", LoHaConfig(r=2, target_modules=["v_proj"]))
    model.set_adapter(["default", "loha"])
    report = nystrom_init_(model, xi=0.1)
    assert report.passed and prove_init(model, report.start).passed
    before = snapshot(model)
    _step(model, create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-2))
    moved = {name for name, tensor in snapshot(model).items() if not torch.equal(tensor, before[name])}
    assert any("lora_B" in name for name in moved) and any("hada" in name for name in moved)


def test_merged_and_adapted_again() -> None:
    base = tiny_llama()
    for cycle in range(3):
        model: Any = with_lora(base)
        weights = [layer.weight.clone() for layer in lora_layers(model)]
        assert nystrom_init_(model, xi=0.1, seed=cycle).passed
        assert prove_init(model, nystrom_init_(model, xi=0.1, seed=cycle).start, inputs={"input_ids": IDS}).passed
        optimizer = create_nora_plus_optimizer(model, torch.optim.AdamW, lr=1e-2)
        for _ in range(2):
            _step(model, optimizer)
        wanted, names = _logits(model), [layer.name for layer in lora_layers(model)]
        base = model.merge_and_unload()
        torch.testing.assert_close(_logits(base), wanted, rtol=1e-4, atol=1e-5)
        assert all(not torch.equal(base.get_submodule(n).weight, W) for n, W in zip(names, weights, strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")
def test_groups_a_compiled_step_and_another_optimisers_state() -> None:
    def made() -> tuple[Any, Any]:
        model = _started()
        return model, create_nora_plus_optimizer(model, torch.optim.SGD, lr=0.1, momentum=0.9)

    (model, optimizer), (other, its) = made(), made()
    factors = [layer.parameter_B for layer in lora_layers(other)]
    group = its.param_groups[0]
    group["params"] = [p for p in group["params"] if all(p is not B for B in factors)]
    its.add_param_group({"params": factors, "lr": 0.1})
    step = torch.compile(its.step, backend="eager")
    for _ in range(3):
        _step(model, optimizer)
        _backward(other)
        step()
    for mine, theirs in zip(lora_layers(model), lora_layers(other), strict=True):
        torch.testing.assert_close(theirs.A, mine.A, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(theirs.B, mine.B, rtol=1e-4, atol=1e-6)
    plain = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    optimizer.load_state_dict(plain.state_dict())
    _step(model, optimizer)
    assert optimizer.param_groups[0]["nora_plus_steps"] == 1

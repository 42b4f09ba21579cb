"""``save_adapter`` read back by stock PEFT and by transformers' ``load_adapter`` on the untouched base.

What is trained × how the model carries the adapter × how it was started × who loads it: the output after loading is
that before saving, bit for bit, or to 1e-6 where the start (PiSSA, OLoRA) is converted; or saving is refused and the
folder does not exist.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from sharding import mesh as mesh
from torch import Tensor, nn

from nora.adapters import factors_at_start, lora_layers, nystrom_init_, save_adapter
from twins import randomize_factors, tiny_llama

IDS = torch.arange(3, 13)[None]
SHARED = {"lm_head", "embed_tokens"}  # one table in the tied model
PARTS: dict[str, dict[str, Any]] = {
    "factors": {},
    "patterns": {"rank_pattern": {"v_proj": 6}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True},
    "whole modules": {"modules_to_save": ["norm"]},
    "untied embedding": {"modules_to_save": ["embed_tokens"]},
    "tied embedding": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tied head": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "biases of the adapted": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "tokens": {"trainable_token_indices": [1, 2]},
    "tied tokens": {"trainable_token_indices": [1, 2], "ensure_weight_tying": True},
    "embedding factors": {"target_modules": ["q_proj", "embed_tokens"]},
    "head factors": {"target_modules": ["q_proj", "lm_head"]},
    "embedding and head factors": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "everything linear": {"target_modules": "all-linear"},
    "by a regular expression": {"target_modules": r".*\.(q|v)_proj"},
    "replicated layers": {"layer_replication": [[0, 1], [0, 1]]},
}
TIED_AND_MOVED = {"head factors", "embedding and head factors", "replicated layers"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tied:UserWarning"),
]


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def _adapted(carried: str, init: Any, **options: Any) -> Any:
    config: Any = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
    config = LoraConfig(**config, init_lora_weights=True if init == "nystrom" else init)
    if carried == "get_peft_model":
        model: Any = get_peft_model(tiny_llama(), config)
    else:
        model = tiny_llama()
        model.add_adapter(config)
    if init == "nystrom":
        assert nystrom_init_(model, xi=0.1).passed
    return model


def _train(model: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    model.eval()


def _by_peft(folder: Path) -> Any:
    return PeftModel.from_pretrained(tiny_llama(), str(folder)).eval()


def _by_transformers(folder: Path) -> Any:
    model = tiny_llama()
    model.load_adapter(str(folder))
    return model.eval()


LOADERS = [_by_peft, _by_transformers]


@pytest.mark.parametrize("init", ["nystrom", "pissa", "olora"])
@pytest.mark.parametrize("carried", ["get_peft_model", "add_adapter"])
@pytest.mark.parametrize("part", PARTS)
def test_stock_loaders_give_the_same_output(part: str, carried: str, init: str, tmp_path: Path) -> None:
    if init != "nystrom" and part in TIED_AND_MOVED:
        with pytest.raises(ValueError, match="share"):
            factors_at_start(_adapted(carried, init, **PARTS[part]))
        with pytest.raises(ValueError, match="share"):
            save_adapter(_adapted(carried, init, **PARTS[part]), tmp_path / "saved", at_start={})
        assert not list(tmp_path.iterdir())
        return
    model = _adapted(carried, init, **PARTS[part])
    start = factors_at_start(model)
    fresh = _logits(model)
    _train(model)
    wanted = _logits(model)
    assert (wanted - fresh).abs().max() > 1e-3, "training changed the output"
    save_adapter(model, tmp_path, at_start=start)
    for load in LOADERS:
        torch.testing.assert_close(_logits(load(tmp_path)), wanted, rtol=0, atol=0 if init == "nystrom" else 1e-6)


def test_dora_is_read_by_peft_and_by_transformers_as_badly_as_its_own_file(tmp_path: Path) -> None:
    """transformers 5.23 looks for the magnitudes under another name than PEFT writes: the file is not at fault."""
    model = _adapted("add_adapter", "nystrom", use_dora=True)
    _train(model)
    wanted = _logits(model)
    save_adapter(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(_logits(_by_peft(tmp_path / "ours")), wanted, rtol=0, atol=0)
    ours, theirs = (_logits(_by_transformers(tmp_path / name)) for name in ("ours", "theirs"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert (theirs - wanted).abs().max() > 1e-3, "mended in transformers: say so in save_adapter and move DoRA to PARTS"


def _compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def _compiled_in_part(model: Any) -> Any:
    for layer in lora_layers(model):
        parent, _, name = layer.name.rpartition(".")
        owner = model.get_base_model().get_submodule(parent)
        setattr(owner, name, torch.compile(getattr(owner, name), backend="eager"))
    return model


def _checkpointed(model: Any) -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    with torch.random.fork_rng():
        apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == "LlamaDecoderLayer")
    return model


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch.compile's own
@pytest.mark.parametrize("part", ["factors", "whole modules", "tied head", "tokens"])
@pytest.mark.parametrize("init", ["nystrom", "olora"])
@pytest.mark.parametrize("wrap", [_compiled, _compiled_in_part, _checkpointed, nn.DataParallel])
def test_wrappers_leave_no_trace_in_the_file(wrap: Any, init: str, part: str, tmp_path: Path) -> None:
    model = _adapted("get_peft_model", init, **PARTS[part])
    plain = factors_at_start(model)
    wrapped = wrap(model)
    start = factors_at_start(wrapped)
    assert start.keys() == plain.keys() and not any("_" + "orig_mod" in key for key in start)
    _train(model)
    wanted = _logits(model)
    save_adapter(wrapped, tmp_path, at_start=start)
    for load in LOADERS:
        torch.testing.assert_close(_logits(load(tmp_path)), wanted, rtol=0, atol=0 if init == "nystrom" else 1e-6)


def test_a_sharded_model_is_gathered(mesh: Any, tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    for init in ("nystrom", "olora"):
        model = _adapted("get_peft_model", init)
        start = factors_at_start(model)
        randomize_factors(model)
        wanted = _logits(model)
        fully_shard(model.get_base_model().model.layers[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        save_adapter(model, tmp_path / init, at_start=start)
        for load in LOADERS:
            loaded = load(tmp_path / init)
            torch.testing.assert_close(_logits(loaded), wanted, rtol=0, atol=0 if init == "nystrom" else 1e-6)


def test_a_shard_is_refused_and_its_gathered_state_taken(tmp_path: Path) -> None:
    """What DeepSpeed's ZeRO 3 leaves in the module: an empty tensor; ``accelerator.get_state_dict`` gathers them."""
    model = _adapted("get_peft_model", "nystrom")
    randomize_factors(model)
    wanted, gathered = _logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora_layers(model)[0].A.data = torch.empty(0)
    with pytest.raises(ValueError, match=r"q_proj.*shards; gather the model first"):
        save_adapter(model, tmp_path / "saved")
    assert not list(tmp_path.iterdir())
    save_adapter(model, tmp_path / "saved", state_dict=gathered)
    torch.testing.assert_close(_logits(_by_peft(tmp_path / "saved")), wanted, rtol=0, atol=0)


def test_each_of_several_adapters_is_saved_alone(tmp_path: Path) -> None:
    model = _adapted("get_peft_model", "nystrom", modules_to_save=["norm"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["k_proj", "v_proj"], modules_to_save=["norm"]))
    for name in ("default", "other"):
        model.set_adapter(name)
        _train(model)
    for name in ("default", "other"):
        model.set_adapter(name)
        wanted = _logits(model)
        save_adapter(model, tmp_path / name, adapter_name=name)
        for load in LOADERS:
            torch.testing.assert_close(_logits(load(tmp_path / name)), wanted, rtol=0, atol=0)


def test_a_bare_module_with_an_injected_adapter(tmp_path: Path) -> None:
    """``inject_adapter_in_model`` leaves the names of the bare model; PEFT's loader wants its own prefix."""
    make = functools.partial(nn.Sequential, nn.Linear(8, 8), nn.ReLU())
    with torch.random.fork_rng():
        model = make()
    base = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    base.load_state_dict(model.state_dict())
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), model)
    randomize_factors(model)
    save_adapter(model, tmp_path)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        "base_model.model.0.lora_A.weight",
        "base_model.model.0.lora_B.weight",
    }
    x = torch.randn(3, 8)
    torch.testing.assert_close(PeftModel.from_pretrained(base, str(tmp_path))(x), model(x), rtol=0, atol=0)


def test_the_config_says_where_the_base_came_from(tmp_path: Path) -> None:
    """As PEFT's own file does: ``AutoPeftModel`` reads it."""
    import json

    model = _adapted("add_adapter", "nystrom", task_type=None)
    model.name_or_path = "somebody/a-model"
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somebody/a-model" and config["inference_mode"] is True
    assert config["auto_mapping"]["base_model_class"] == "LlamaForCausalLM"


def _refused(match: str, model: Any, tmp_path: Path, **options: Any) -> None:
    with pytest.raises(ValueError, match=match):
        save_adapter(model, tmp_path / "saved", **options)
    assert not list(tmp_path.iterdir()), "not a byte was written"


def test_another_adapters_moved_base_is_refused(tmp_path: Path) -> None:
    model = _adapted("get_peft_model", "pissa")
    model.add_adapter("late", LoraConfig(r=4, target_modules=["q_proj"]))
    _refused("moved by the start of adapter 'default'", model, tmp_path, adapter_name="late")


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_base_moved_in_half_precision_is_refused_before_training(init: str, tmp_path: Path) -> None:
    """W - s B₀ A₀ was rounded to bfloat16: no LoRA of the untouched base gives the rest back."""
    config: Any = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init)
    model = get_peft_model(tiny_llama(dtype=torch.bfloat16), config)
    with pytest.raises(ValueError, match=r"given torch.bfloat16 where \w+ moved the base, required float32"):
        factors_at_start(model)
    _refused("required float32", model, tmp_path, at_start={})


def test_dora_on_a_moved_base_is_refused(tmp_path: Path) -> None:
    _refused("given DoRA on a base moved by olora", _adapted("get_peft_model", "olora", use_dora=True), tmp_path)


def test_a_trained_parameter_outside_every_adapter_is_refused(tmp_path: Path) -> None:
    model = _adapted("get_peft_model", "nystrom")
    model.get_base_model().model.norm.weight.requires_grad_(True)
    _refused(r"model\.norm\.weight: given a trainable parameter .* name its module in modules_to_save", model, tmp_path)


def test_a_factor_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = _adapted("get_peft_model", "nystrom")
    lora_layers(model)[1].B.data[0, 0] = float("nan")
    _refused(r"v_proj\.lora_B\.weight: given entries that are not finite", model, tmp_path)


@pytest.mark.parametrize("other", ["q_proj", "lora_A"])
def test_an_adapter_named_as_a_part_of_the_model_is_refused(other: str, tmp_path: Path) -> None:
    """PEFT then drops every key with that name in it, and writes an adapter without them."""
    model = _adapted("get_peft_model", "nystrom")
    model.add_adapter(other, LoraConfig(r=4, target_modules=["q_proj"]))
    _refused("PEFT does not find this factor to save", model, tmp_path)


def test_adalora_is_refused(tmp_path: Path) -> None:
    from peft import AdaLoraConfig

    model = get_peft_model(tiny_llama(), AdaLoraConfig(target_modules=["q_proj"], total_step=10))
    _refused("given ADALORA, required LoRA", model, tmp_path)


def test_two_parts_with_adapters_of_one_name_are_refused(tmp_path: Path) -> None:
    parts = nn.ModuleList([_adapted("add_adapter", "nystrom"), _adapted("get_peft_model", "nystrom")])
    _refused(r"several parts that carry it \(LlamaForCausalLM, PeftModelForCausalLM\); save each", parts, tmp_path)


def test_an_embedding_for_a_resized_vocabulary_goes_along(tmp_path: Path) -> None:
    model = _adapted("get_peft_model", "nystrom")
    model.get_base_model().model.embed_tokens.weight.data[3:].add_(0.1)  # what resizing leaves: other rows than before
    wanted = _logits(model)
    save_adapter(model, tmp_path, save_embedding_layers=True)
    torch.testing.assert_close(_logits(_by_peft(tmp_path)), wanted, rtol=0, atol=0)

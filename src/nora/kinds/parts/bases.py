"""Spec → objects: base model, tokenizer, rows, adapter."""

from __future__ import annotations

import copy
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from safetensors.torch import load
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from nora import streams
from nora.adapters import (
    InitReport,
    initialize_,
    inits,
    lora_layers,
    prefix_init_,
    prove_init,
    prove_prefix,
    snapshot_weights,
    variants,
)
from nora.adapters.layers import trainable_parameters
from nora.adapters.prefix import drawn_tokens, token_keys_values
from nora.adapters.surroundings import without_adapters
from nora.config.pins import MODEL_FILES, check_files, check_model_files, fetched_folder
from nora.config.schema import MethodSpec, ModelSpec, validate
from nora.errors import RunFailed, UserError
from nora.files import Json, canonical_json
from nora.kinds.parts.cost import KEPT_BYTES
from nora.kinds.parts.gguf import dequantised
from nora.store.record import Record
from nora.store.runs import Store
from nora.training.generation import save_merged
from nora.training.loop import Objective
from nora.training.measures import sharpness
from nora.training.scoring import check_rows

# peft 0.21 reads a property that transformers 5.23 has renamed; nothing of ours depends on it.
transformers_logging.disable_progress_bar()
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

_RANDOM_WEIGHTS_SEED = 0  # every run over a random-weight base shares one base


def random_model(architecture: Mapping[str, Json], *, seed: int = _RANDOM_WEIGHTS_SEED) -> PreTrainedModel:
    """A causal language model of the given architecture (``model_type`` and its config's fields), seeded."""
    fields = dict(architecture)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with streams.seeded(seed, "weights"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


@dataclass(frozen=True)
class Base:
    """A base model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shared: PreTrainedModel | None = None
    """In a bank: what holds the frozen weights that the members' models share, itself never adapted."""

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else 0)


Made = TypeVar("Made")
_made: dict[str, tuple[str, Any]] = {}


def made_once(what: str, key: str, make: Callable[[], Made], *, keep: bool) -> Made:
    """What several runs of this process have in common, made by the first of them; the last one of each sort stays."""
    if not keep:
        return make()
    if what not in _made or _made[what][0] != key:
        _made.pop(what, None)  # before the next one is made: two bases may not fit
        _made[what] = key, make()
    made: Made = _made[what][1]
    return made


def load_base(
    spec: ModelSpec, checkout: Path, device: torch.device, *, keep: bool = False, share: bool = False
) -> Base:
    """The base of a spec, its files checked against their hashes, in evaluation mode on ``device``.

    With ``keep`` an untouched copy stays in memory for the next run of this process on the same base; with ``share``
    the model's weights are those of that copy.
    """
    if not (keep or share):
        return _load_base(spec, checkout, device)
    first = device if share else torch.device("cpu")
    kept = made_once(
        "base", canonical_json(asdict(spec)), lambda: _load_base(spec, checkout, first), keep=True
    )  # fmt: skip
    model: Any = kept.model
    if share:
        model = model.to(device)
        one = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
        return Base(one, kept.tokenizer, model)
    return Base(copy.deepcopy(model).to(device), kept.tokenizer)


def own_weights_(modules: Iterable[nn.Module]) -> None:
    """Gives each module a weight of its own, to be changed without changing the base that others share."""
    for module in modules:
        shared: Any = module.weight
        module.weight = nn.Parameter(shared.detach().clone(), requires_grad=False)


def _load_base(spec: ModelSpec, checkout: Path, device: torch.device) -> Base:
    dtype = getattr(torch, spec.dtype)
    if spec.weights == "random":  # the true shape without a download; ids come from a borrowed tokenizer
        borrowed = checkout / str(spec.tokenizer)
        check_model_files(borrowed, (spec.files or {}) if spec.source != "hub" else {}, checkout)
        tokenizer = AutoTokenizer.from_pretrained(borrowed)
        model = random_model(spec.architecture or {}, seed=_RANDOM_WEIGHTS_SEED).to(dtype)
    else:
        folder = model_folder(spec, checkout)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.requires_grad_(False)
    return Base(model.to(device).eval(), tokenizer)


def model_folder(spec: ModelSpec, checkout: Path) -> Path:
    """The folder of a pretrained base, every file that is loaded from it compared with its hash."""
    if spec.source in ("gguf", "package"):
        return dequantised(spec, checkout)
    if spec.source == "asset":
        folder = checkout / str(spec.repo)
        check_model_files(folder, spec.files or {}, checkout)
        return folder
    folder = fetched_folder(str(spec.repo), str(spec.revision), spec.files or MODEL_FILES)
    check_files(folder, spec.files or {})
    return folder


@dataclass(frozen=True)
class Adapted:
    """A base with its adapter and the proof of the adapter's start."""

    model: PeftModel
    proof: InitReport
    pretrained: Mapping[str, torch.Tensor]
    """Weights [out, in] of the adapted modules before any adapter touched them ({} for prefix tuning)."""
    subtracted: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None
    """A and B that the start took out of each layer's weight (PiSSA, OLoRA); None if it left the base alone."""
    cost: dict[str, Json] = field(default_factory=dict)
    """What the start took: seconds, bytes on top of the most held before, the training rows it looked at."""


def add_adapter(
    base: Base,
    method: MethodSpec,
    targets: list[str],
    *,
    seed: int,
    probe: Mapping[str, torch.Tensor],
    rows: TrainingRows | None = None,
) -> Adapted:
    """Wraps the base, starts the adapter from its own streams and proves the start on ``probe`` inputs.

    Raises RunFailed where the proof fails: a run whose init is not what it says must not train.
    """
    if base.model.config.model_type not in KEPT_BYTES:  # those are compared by the tests
        check_rows(base.model, probe["input_ids"][0].tolist())
    adapted = (_add_prefix if method.adapter == "prefix" else _add_lora)(base, method, targets, seed, probe, rows)
    if not adapted.proof.passed:
        raise RunFailed("the init proof failed: " + "; ".join(adapted.proof.problems[:3]))
    return adapted


def check_targets(found: Iterable[str], targets: list[str], model: str) -> None:
    """RunFailed where a target name ends no module's name."""
    absent = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in found)]
    if absent:
        raise RunFailed(f"model.targets: {', '.join(absent)} match no module of {model}")


def lora_config(method: MethodSpec, targets: list[str]) -> LoraConfig:
    """PEFT's config of a LoRA method."""
    assert method.rank is not None and method.alpha is not None and method.dropout is not None  # the schema's promise
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=method.dropout,
        target_modules=targets,
        init_lora_weights=inits.load(method.init).PEFT_INIT,
        **variants.peft_settings(method.variant),
    )


def peft_config(method: MethodSpec, targets: list[str]) -> PeftConfig:
    """PEFT's config of a method: LoRA or prefix tuning."""
    if method.adapter == "prefix":
        return PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=method.num_virtual_tokens or 0)
    return lora_config(method, targets)


def moves_base(method: MethodSpec) -> bool:
    """Whether the method's start changes the frozen weights (PiSSA, OLoRA)."""
    return method.adapter == "lora" and bool(inits.load(method.init).MOVES_BASE)


def untouched(model: PeftModel, method: MethodSpec) -> AbstractContextManager[None]:
    """The pretrained model's outputs. The proof has just shown that an untrained adapter changes nothing, except where
    its start is itself a step; such a start leaves the base alone, and the adapter is off inside."""
    steps = method.adapter == "lora" and hasattr(inits.load(method.init), "CHANGES_OUTPUT")
    return without_adapters(model) if steps else nullcontext()


def init_options(method: MethodSpec) -> dict[str, Json]:
    """The settings that the method's init knows."""
    known = {f.name for f in fields(method)} & set(inits.load(method.init).OPTIONS)
    own = {key: value for key in sorted(known) if (value := getattr(method, key)) is not None}
    return {**own, **(method.options or {})}


def _add_lora(
    base: Base,
    method: MethodSpec,
    targets: list[str],
    seed: int,
    probe: Mapping[str, torch.Tensor],
    rows: TrainingRows | None,
) -> Adapted:
    pretrained = snapshot_weights(base.model, set(targets))
    check_targets(pretrained, targets, type(base.model).__name__)
    with torch.no_grad():
        base_output = base.model(**probe).logits
    moves = moves_base(method)
    if moves and base.shared is not None:
        own_weights_(
            m for name, m in base.model.named_modules() if f".{name}".endswith(tuple(f".{t}" for t in targets))
        )
    config = lora_config(method, targets)
    adapted = (m for name, m in base.model.named_modules() if f".{name}".endswith(tuple(f".{t}" for t in targets)))
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in adapted)  # GPT-2's; PEFT would warn and set it
    model = get_peft_model(base.model, config)
    proof, cost = started(model, method, seed, probe, pretrained, base_output, rows, baseline="kaiming")
    pairs = {x.name: (x.A.detach().clone(), x.B.detach().clone()) for x in lora_layers(model)} if moves else None
    return Adapted(model, proof, pretrained, pairs, cost)


def started(
    model: Any,
    method: MethodSpec,
    seed: int,
    probe: Mapping[str, Json],
    pretrained: Mapping[str, torch.Tensor],
    base_output: torch.Tensor,
    rows: TrainingRows | None,
    *,
    baseline: str,
) -> tuple[InitReport, dict[str, Json]]:
    """Starts the method's adapter and proves the start; what the start cost. RunFailed where it cannot be had.

    ``baseline``: the start whose A the method's is made as large as where ``match`` says so.
    """
    began, memory = time.monotonic(), _peak_bytes()
    data: dict[str, Any] = {}
    if method.init_rows is not None:
        if rows is None:
            raise RunFailed(f"{method.init}: starts from training rows, and there are none here")
        data = {"batches": rows.stream(method.init_rows, seed), "loss": rows.loss}
    try:
        start = initialize_(
            model, method.init, seed=seed, size_of=baseline if method.match else None, **data, **init_options(method)
        )
    except ValueError as error:
        raise RunFailed(str(error)) from None
    cost: dict[str, Json] = {"start_seconds": time.monotonic() - began, "start_bytes": _peak_bytes() - memory}
    if "batches" in data:
        cost["start_rows"] = data["batches"]
    variants.freeze_(model, method.variant)
    return prove_init(model, start, inputs=probe, pretrained=pretrained, base_output=base_output), cost


def _peak_bytes() -> int:
    """The most memory this process has held: of the device where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class TrainingRows:
    """The training rows that a data-driven start may look at, and their loss: never dev, never test."""

    num_rows: int
    loss: Callable[[Any, int], torch.Tensor]
    """(model, index of a row) → its mean loss."""

    def stream(self, count: int, seed: int, name: str = "init rows") -> list[int]:
        """``count`` different rows in the order of a stream of their own; a set with fewer is gone through again."""
        draw = streams.generator(seed, name)
        rounds = [torch.randperm(self.num_rows, generator=draw).tolist() for _ in range(-(-count // self.num_rows))]
        return [index for one in rounds for index in one][:count]


SHARPNESS_ROWS = 16


def measure_sharpness(
    model: nn.Module, loss: Callable[[nn.Module], torch.Tensor], seed: int, *, rows: int
) -> dict[str, Json]:
    """What ``measure=[sharpness]`` records of the untrained adapter; every method of a seed has the same rows."""
    found = sharpness(
        model, loss, list(trainable_parameters(model).values()), generator=streams.generator(seed, "sharpness")
    )
    return {"value": found.value, "products": found.products, "residual": found.residual, "rows": rows}


def rows_of(objective: Objective, before: Callable[[int], None] = lambda index: None) -> TrainingRows:
    """The rows of a run's objective, one at a time, so that none is padded; ``before`` is called with the row."""

    def loss(model: Any, index: int) -> torch.Tensor:
        before(index)
        return objective.loss(model, [index]) / max(1, objective.count([index]))

    return TrainingRows(objective.num_examples, loss)


def _add_prefix(
    base: Base,
    method: MethodSpec,
    targets: list[str],
    seed: int,
    probe: Mapping[str, torch.Tensor],
    rows: TrainingRows | None,
) -> Adapted:
    del probe, rows
    tokens = drawn_tokens(base.model.config.vocab_size, method.num_virtual_tokens or 0, seed=seed)
    keys_values = token_keys_values(base.model, tokens)
    model = get_peft_model(base.model, peft_config(method, targets))
    prefix_init_(model, keys_values)
    return Adapted(model, prove_prefix(model, base.model, tokens), {})


@torch.no_grad()
def write_merged(record: Record, store: Store, checkout: Path, folder: Path) -> None:
    """The base of the record with its kept adapter merged, and the tokenizer. UserError where there is no such thing.

    The start is made again (PiSSA and OLoRA move the base), then the trained factors are put in.
    """
    from nora.kinds.instruct import trained_method

    if record.spec["kind"] != "finetune" or record.spec["method"]["adapter"] != "lora":
        raise UserError(f"{record.id}: given a run that trains no LoRA of a language model, required kind=finetune")
    kept = record.result["files"].get("adapter")
    path = store.run_dir("finetune", record.id) / str(kept and kept["name"])
    if kept is None or not path.is_file():
        raise UserError(f"{record.id}: its adapter was not kept; repeat the run with exec.keep_adapter=true")
    problems = store.verify_files(record)
    if problems:
        raise UserError("; ".join(problems))
    model: ModelSpec = validate(record.spec["model"], ModelSpec)
    declared: MethodSpec = validate(record.spec["method"], MethodSpec)
    method, _ = trained_method(declared, record.spec["protocol"].get("sketch", "applied"))
    if method.init_rows is not None:
        if moves_base(method):
            raise UserError(
                f"{record.id}: {method.init} moved the base by what it took from training rows; merge it there"
            )
        # The base is untouched, and every trained factor is put in below: any start of these shapes will do.
        method = replace(
            method, init="kaiming", init_rows=None, options=None, xi=None, side=None, divide_by_scaling=None, match=None
        )
    base = load_base(model, checkout, torch.device("cpu"))
    probe = {"input_ids": torch.tensor([base.tokenizer("probe")["input_ids"]])}
    adapted = add_adapter(base, method, model.targets, seed=record.spec["seed"], probe=probe)
    trained = load(path.read_bytes())
    for name, parameter in trainable_parameters(adapted.model).items():
        parameter.copy_(trained[name])
    save_merged(adapted.model, folder)
    base.tokenizer.save_pretrained(folder)

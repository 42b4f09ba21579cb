"""What a composed config may say: types, ranges, closed sets of names. Validation reports every problem at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from nora.errors import UserError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_MOST = 10**9  # more steps, rows, tokens or bytes of a thing are a slip: such a run would never end
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=_MOST)]
Size = Annotated[int, Field(ge=0, le=_MOST)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


_LORA_ONLY = ("rank", "alpha", "dropout")
_NYSTROM_ONLY = ("xi", "side", "divide_by_scaling")
_PRECONDITIONER_ONLY = ("normalize", "damping")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MethodSpec:
    """An adapter and how it starts and steps."""

    name: Name
    adapter: Literal["lora", "prefix"]
    init: Name
    rank: Count | None = None
    alpha: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    xi: Positive | None = None
    side: Literal["A", "B"] | None = None
    divide_by_scaling: bool | None = None
    preconditioner: Literal["scaled_gd"] | None = None
    normalize: Literal["frobenius", "none"] | None = None
    damping: NonNegative | None = None
    num_virtual_tokens: Count | None = None

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> MethodSpec:
        groups = {
            _LORA_ONLY: (self.adapter == "lora", f"adapter={self.adapter}"),
            _NYSTROM_ONLY: (self.init == "nystrom", f"init={self.init}"),
            _PRECONDITIONER_ONLY: (self.preconditioner is not None, "preconditioner=null"),
            ("num_virtual_tokens",): (self.adapter == "prefix", f"adapter={self.adapter}"),
        }
        problems = []
        for keys, (wanted, because) in groups.items():
            for key in keys:
                given = getattr(self, key) is not None
                if given and not wanted:
                    problems.append(f"{key} has no meaning with {because}")
                elif wanted and not given:
                    problems.append(f"{key} is required with {because}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSpec:
    """A base model: an asset of the checkout, a Hub repository by commit, or an architecture with random weights."""

    name: Name
    family: Literal["opt", "llama", "gemma", "stable_diffusion"]
    source: Literal["asset", "hub", "config"]
    weights: Literal["pretrained", "random"]
    dtype: Literal["float32", "bfloat16", "float16"]
    targets: list[str]
    max_length: Count
    repo: str | None = None
    revision: str | None = None
    files: dict[str, str] | None = None
    tokenizer: str | None = None
    bos_token_id: Size | None = None
    """Replaces the first id the tokenizer gives (the few-shot protocol starts OPT's texts with id 0)."""
    architecture: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _source_is_complete(self) -> ModelSpec:
        required = {"asset": ("repo", "files"), "hub": ("repo",), "config": ("architecture", "tokenizer")}
        wanted = [*required[self.source], *(("architecture", "tokenizer") if self.weights == "random" else ())]
        missing = [key for key in dict.fromkeys(wanted) if getattr(self, key) is None]
        if missing:
            raise ValueError(f"source={self.source}, weights={self.weights} needs {', '.join(missing)}")
        if self.source == "config" and self.weights != "random":
            raise ValueError("source=config has no pretrained weights; use weights=random")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingProtocol:
    """AdamW with a schedule and clipping: what every protocol that trains has."""

    version: Count
    lr: Positive
    batch_size: Count
    schedule: Literal["linear", "cosine", "constant"]
    optimizer: Literal["adamw"]
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    eps: Positive
    weight_decay: NonNegative
    max_grad_norm: Positive | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecSpec:
    """Where and how a run executes; nothing here may change a number."""

    name: Literal["local", "slurm"]
    results: Annotated[str, Field(min_length=1)]
    processes: Count
    threads: Count
    device: Literal["auto", "cpu", "cuda"]
    wandb: Literal["none", "offline", "online"]
    wandb_project: Name
    progress: bool
    checkpoint_every: Count
    keep_adapter: bool
    micro_batch_size: Count | None = None
    generate_tokens: Annotated[int, Field(ge=8)] | None = None
    """Tokens answered from at once, beams and new ones counted (instruct protocols); null: 8192."""
    data_parallel: bool | None = None
    """The run is started by ``accelerate launch`` or torchrun: its processes share every batch (instruct protocols)."""
    sample_every: Count | None = None
    """kind=dreambooth: optimiser steps between sample pictures in the attempt's folder and in W&B; null: none."""
    profile: Name | None = None
    """A file of slurm/profiles/."""
    code: Literal["snapshot", "live"] | None = None
    partition: Name | None = None
    """Instead of the profile's, as are the next three."""
    parallel: Count | None = None
    runs_per_task: Count | None = None
    max_array_size: Count | None = None

    @model_validator(mode="after")
    def _fields_fit_the_place(self) -> ExecSpec:
        cluster = ("profile", "code", "partition", "parallel", "runs_per_task", "max_array_size")
        given = [key for key in cluster if getattr(self, key) is not None]
        if self.name == "local" and given:
            raise ValueError(f"{', '.join(given)}: no meaning with exec=local, use exec=slurm")
        if self.name == "slurm" and (self.profile is None or self.code is None):
            raise ValueError("profile and code are required with exec=slurm")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskSpec:
    """A data set and how many of its rows are used."""

    name: Name
    suite: Name
    source: Literal["slice", "hub"]
    num_train: Count
    num_dev: Count
    num_test: Count
    revision: str | None = None
    files: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FewShotProtocol(TrainingProtocol):
    """Training and evaluation rules of the few-shot tasks."""

    name: Literal["mezo"]
    epochs: Size
    warmup_steps: Size
    precision: Literal["fp32", "bf16"]
    share_prompt: bool
    max_steps: Count | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InstructProtocol(TrainingProtocol):
    """Training on instructions and scoring generated answers (paper, Tables 4 and 9)."""

    name: Literal["llm_adapters", "llm_adapters_released", "llm_adapters_modern", "metamath"]
    epochs: Size
    warmup_steps: Size | None
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None
    precision: Literal["fp32", "bf16", "fp16"]
    """fp16: autocast with a scaled loss, as the paper's scripts train (their base is model.dtype=float16)."""
    cutoff: Count
    """Tokens of a training text; a longer one is cut on the right (and has no end-of-sequence token)."""
    loss_on: Literal["text", "answer"]
    eval_every: Count | None
    """Steps between dev losses; null: at the end of each epoch."""
    keep: Literal["lowest_dev_loss", "last"]
    beams: Count
    max_new_tokens: Count
    merge: bool
    """Whether the adapter is merged into the weights before answers are generated."""
    sketch: Literal["applied", "lost"]
    """"lost" reproduces the released code: a Nyström init is declared and Kaiming's is what trains."""
    precondition: Literal["step", "micro_batch"]
    max_steps: Count | None = None
    eval_backend: Literal["vllm"] | None = None
    """What generates the answers; null: transformers."""

    @model_validator(mode="after")
    def _fields_fit(self) -> InstructProtocol:
        problems = []
        if (self.warmup_steps is None) == (self.warmup_ratio is None):
            problems.append("give either warmup_steps or warmup_ratio")
        if self.eval_backend == "vllm" and self.beams != 1:
            problems.append(f"beams: given {self.beams}, required 1 with eval_backend=vllm (greedy protocols alone)")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneSpec:
    """``kind=finetune``: one base model, one task, one method."""

    kind: Literal["finetune"]
    model: ModelSpec
    task: TaskSpec
    method: MethodSpec
    protocol: Annotated[FewShotProtocol | InstructProtocol, Field(discriminator="name")]
    seed: Seed
    measure: list[Literal["spectrum", "zero_shot"]]

    @model_validator(mode="after")
    def _parts_fit(self) -> FinetuneSpec:
        if isinstance(self.protocol, InstructProtocol) and self.method.adapter != "lora":
            merging = "merge" if self.protocol.merge else "eval_backend" if self.protocol.eval_backend else None
            if merging is not None:
                raise ValueError(
                    f"protocol.{merging}: merges the adapter into the weights, which adapter={self.method.adapter} "
                    "cannot; required adapter=lora"
                )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProblemSpec:
    """A matrix of prescribed spectrum and the rank of its factors (paper, Appendix E.1)."""

    name: Name
    symmetric: bool
    m: Count
    n: Count | None = None
    rank: Count
    spectrum: Literal["plateau", "geometric"]
    count: Count
    """Values of the plateau (before the tail), or all values of the geometric spectrum."""
    tail: list[Positive] | None = None
    kappa: Annotated[float, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _fields_fit(self) -> ProblemSpec:
        problems = []
        if self.symmetric != (self.n is None):
            problems.append("n is required for an asymmetric problem and has no meaning for a symmetric one")
        if (self.spectrum == "geometric") != (self.kappa is not None):
            problems.append("kappa is required with spectrum=geometric and has no meaning with plateau")
        smallest = min(self.m, self.n or self.m)
        if self.rank > smallest:
            problems.append(f"rank: given {self.rank}, required at most {smallest}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StartSpec:
    """A file of factorization/starts and its settings."""

    name: Name
    xi: Positive | None = None
    xi_n: Positive | None = None
    zeta: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SolverSpec:
    """A file of factorization/solvers and its settings; ``eta_values`` with ``eta_length`` make a staircase."""

    name: Name
    eta: Positive | None = None
    eta_values: Annotated[list[Positive], Field(min_length=1)] | None = None
    eta_length: Count | None = None
    damping: Positive | None = None
    rcond: Positive | None = None

    @model_validator(mode="after")
    def _one_step_size(self) -> SolverSpec:
        if (self.eta is None) == (self.eta_values is None) or (self.eta_values is None) != (self.eta_length is None):
            raise ValueError("give either eta, or eta_values and eta_length")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FactorizeProtocol:
    """How long to iterate and what is noted."""

    name: Literal["factorize"]
    version: Count
    iterations: Count
    metric: Literal["error", "relative", "loss", "weak"]
    every: Count
    tolerance: Positive | None = None
    epsilons: list[Positive] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FactorizeSpec:
    """``kind=factorize``: one problem, one start, one solver."""

    kind: Literal["factorize"]
    problem: ProblemSpec
    start: StartSpec
    solver: SolverSpec
    protocol: FactorizeProtocol
    seed: Seed
    measure: list[Literal["trace"]]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeployedAdapter:
    """The adapter that is deployed: a start by PEFT's or our name, and its size."""

    init: Literal["kaiming", "gaussian", "orthogonal", "nystrom", "pissa", "pissa_niter_4", "olora"]
    rank: Count
    alpha: Count
    xi: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeploymentProtocol:
    """How long the adapter is trained before it is saved (AdamW)."""

    name: Literal["deployment"]
    version: Count
    steps: Count
    lr: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeploymentSpec:
    """``kind=deployment``: one start, deployed on a text model and on a UNet."""

    kind: Literal["deployment"]
    model: ModelSpec
    adapter: DeployedAdapter
    protocol: DeploymentProtocol
    seed: Seed


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SubjectSpec:
    """A handful of pictures of one subject, and what it is called."""

    name: Name
    suite: Literal["dreambooth"]
    source: Literal["slice", "hub", "folder"]
    """Pictures shipped in data/dreambooth, a data set of the Hub by commit, or a folder of one's own."""
    subject: Annotated[str, Field(min_length=1)]
    """The words that stand for the subject in every prompt."""
    noun: Annotated[str, Field(min_length=1)]
    """What the subject is, for a text encoder that does not know its name."""
    instance_prompt: str
    prompt: str
    """What is drawn after training."""
    num_images: Count | None = None
    """How many pictures there must be."""
    folder: str | None = None
    """Below data/dreambooth for source=slice, any path for source=folder."""
    repo: str | None = None
    revision: str | None = None
    images: list[str] | None = None
    """File names of the Hub's data set that are used; null: every picture."""
    files: dict[str, str] | None = None

    @model_validator(mode="after")
    def _fields_fit(self) -> SubjectSpec:
        problems = []
        for key in ("instance_prompt", "prompt"):
            if f" {self.subject.lower()} " not in f" {getattr(self, key).lower()} ":
                problems.append(f"{key}: given {getattr(self, key)!r}, required a text with the words {self.subject!r}")
        needed = "repo" if self.source == "hub" else "folder"
        if getattr(self, needed) is None:
            problems.append(f"{needed} is required with source={self.source}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EncoderSpec:
    """An image (and text) encoder that pictures are compared by."""

    name: Name
    family: Literal["clip", "dino"]
    source: Literal["asset", "hub"]
    repo: str
    revision: str | None = None
    files: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DreamboothProtocol(TrainingProtocol):
    """Training and drawing rules of subject-driven generation."""

    name: Literal["dreambooth"]
    steps: Count
    resolution: Annotated[int, Field(ge=8, multiple_of=8)]
    crop: Literal["random", "center"]
    interpolation: Literal["bilinear", "lanczos"]
    warmup_steps: Size
    precision: Literal["fp32", "bf16"]
    pictures: Count
    """Pictures drawn at the end, one per picture seed 0, 1, …"""
    picture_steps: Count
    guidance: NonNegative
    encoders: list[EncoderSpec] | None = None
    """Read with measure=[fidelity]."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DreamboothSpec:
    """``kind=dreambooth``: one pipeline, one subject, one method."""

    kind: Literal["dreambooth"]
    model: ModelSpec
    task: SubjectSpec
    method: MethodSpec
    protocol: DreamboothProtocol
    seed: Seed
    measure: list[Literal["fidelity"]]

    @model_validator(mode="after")
    def _parts_fit(self) -> DreamboothSpec:
        problems = []
        if self.model.family != "stable_diffusion":
            problems.append(f"model={self.model.name}: given family {self.model.family}, required stable_diffusion")
        if self.method.adapter != "lora":
            problems.append(f"method={self.method.name}: given adapter={self.method.adapter}, required lora")
        if "fidelity" in self.measure and not self.protocol.encoders:
            problems.append("measure=[fidelity]: protocol.encoders is required")
        if problems:
            raise ValueError("; ".join(problems))
        return self


Spec = FinetuneSpec | FactorizeSpec | DeploymentSpec | DreamboothSpec
KINDS: dict[str, type] = {
    "finetune": FinetuneSpec, "factorize": FactorizeSpec, "deployment": DeploymentSpec, "dreambooth": DreamboothSpec,
}  # fmt: skip


# The one union of the schemas is that of FinetuneSpec's protocols, told apart by their names.
_PROTOCOLS: dict[str, Any] = {
    name: protocol
    for protocol in get_args(get_type_hints(FinetuneSpec)["protocol"])
    for name in get_args(get_type_hints(protocol)["name"])
}


def _keys_at(schema: Any, path: list[str], protocol: str | None) -> list[str]:
    """The field names the schema has at a path, [] where it has no say; ``protocol`` says which of the union."""
    for part in path:
        hints = get_type_hints(schema) if is_dataclass(schema) else {}
        schema = _PROTOCOLS[protocol] if part == "protocol" and protocol is not None else hints.get(part)
        while schema is not None and not is_dataclass(schema) and get_origin(schema) is not None:
            schema = next((a for a in get_args(schema) if is_dataclass(a)), None)
    return [f.name for f in fields(schema)] if is_dataclass(schema) else []


def unknown_key(path: str, allowed: Sequence[str], prefix: str = "") -> str:
    """What to say about a key that is not there: what is, and the nearest of it."""
    *above, name = path.split(".")
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {prefix}{'.'.join([*above, *near])}?" if near else ""
    return f"{path}: unknown key, allowed here: {', '.join(allowed)}{hint}"


def _sentence(error: Any, schema: type, prefix: str) -> str:
    location = [str(part) for part in error["loc"]]
    protocol = None
    if location[:1] == ["protocol"] and location[1:2] and location[1] in _PROTOCOLS:
        protocol = location.pop(1)  # which of the union's protocols it is: no part of the config's path
    path = ".".join(location)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        allowed = _keys_at(schema, location[:-1], protocol)
        return unknown_key(path, allowed, prefix if prefix.endswith(".") else "")  # not a file's name
    if error["type"] == "union_tag_invalid":
        given = error["ctx"]["tag"]
        near = difflib.get_close_matches(given, _PROTOCOLS, n=1)
        return f"{path}.name: given {given!r}, allowed {', '.join(_PROTOCOLS)}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    if error["type"] in ("missing", "missing_argument"):
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = error.get("input")
    if isinstance(given, dict) or type(given).__name__.endswith("ArgsKwargs"):
        return f"{path}: {message}" if path else message
    hint = ""
    if error["type"] == "literal_error":
        options = [part.strip(" '") for part in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(given), options, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
    return f"{path}: given {given!r}, {message}{hint}"


def validate(value: Any, schema: type, *, prefix: str = "") -> Any:
    """The value as ``schema``; UserError with every problem, each with its path, what was given and what is allowed."""
    try:
        return TypeAdapter(schema).validate_json(
            json.dumps(value)
        )  # JSON mode: strict types, yet dicts make dataclasses
    except ValidationError as error:
        problems = [_sentence(e, schema, prefix) for e in error.errors(include_url=False)]
        raise UserError("; ".join(prefix + p for p in problems)) from None

"""What a composed config may say: types, ranges, closed sets of names. Validation reports every problem at once."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from nora import starts
from nora.errors import UserError, among, nearest
from nora.files import Json

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Checked = TypeVar("Checked")
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_MOST = 10**9  # more steps, rows, tokens or bytes of a thing are a slip: such a run would never end
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=_MOST)]
Size = Annotated[int, Field(ge=0, le=_MOST)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


_LORA_ONLY = ("rank", "alpha", "dropout")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MethodSpec:
    """An adapter and how it starts and steps: a start (``init``), a variant and an optimiser, each a file of its
    folder in ``nora/adapters``."""

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
    variant: Name | None = None
    """null: LoRA itself."""
    optimizer: Name | None = None
    """null: AdamW, on what ``preconditioner`` makes of the gradients."""
    lr_ratio: Positive | None = None
    options: dict[str, Json] | None = None
    """What the init's ``OPTIONS`` have beside the fields above; typed as keys of the method."""
    init_rows: Count | None = None
    """Training rows that a data-driven start looks at."""
    match: Literal["frobenius"] | None = None
    """The start's one non-zero factor has the expected Frobenius norm of the ordinary start's A (in place of ξ)."""
    source: str | None = None
    """SHA-256 of the file of an init that is not this package's."""

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> MethodSpec:
        lora = self.adapter == "lora"
        if lora and self.init not in starts.names("inits"):
            return self  # said by those who know what there is; a record's may be of a package that is not here
        said = starts.said("inits", self.init if lora else None)
        own: dict[str, Json] = said["OPTIONS"]
        takes = starts.said("optimizers", self.optimizer)["OPTIONS"]
        scaled = self.preconditioner is not None
        because = f"init={self.init}"
        groups = [
            (_LORA_ONLY, lora, f"adapter={self.adapter}"),
            (("xi",), "xi" in own and self.match is None, because if self.match is None else "match=frobenius"),
            (("side",), "side" in own, because),
            (("divide_by_scaling",), "divide_by_scaling" in own, because),
            (("normalize",), scaled, "preconditioner=null"),
            (("damping",), scaled or "damping" in takes, "preconditioner=null"),
            (("num_virtual_tokens",), self.adapter == "prefix", f"adapter={self.adapter}"),
            (("lr_ratio",), "lr_ratio" in takes, f"optimizer={self.optimizer}"),
            (("init_rows",), "DATA" in said, because),
        ]
        problems = []
        for keys, wanted, reason in groups:
            for key in keys:
                given = getattr(self, key) is not None
                if given and not wanted:
                    problems.append(f"{key} has no meaning with {reason}")
                elif wanted and not given:
                    problems.append(f"{key} is required with {reason}")
        fields_of_its_own = set(own) - {"xi", "side", "divide_by_scaling"}
        if self.options is not None and lora and own and set(self.options) != fields_of_its_own:
            problems.append(
                f"options: given {', '.join(self.options)}, required {', '.join(sorted(fields_of_its_own))}"
            )
        for key, value in (self.options or {}).items():
            default = own.get(key, value)
            fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
            if not fits:
                problems.append(f"{key}: given {value!r}, required a {type(default).__name__} with {because}")
            elif value not in said.get("ALLOWED", {}).get(key, (value,)):
                allowed = ", ".join(map(str, said["ALLOWED"][key]))
                problems.append(f"{key}: given {value!r}, allowed {allowed} with {because}")
        if self.match is not None and not said.get("ONE_SIDED"):
            problems.append(f"match=frobenius has no meaning with init={self.init}: it has not one factor to scale")
        if self.variant is not None or self.optimizer is not None:
            problems += self._parts_that_exclude_each_other(lora, scaled)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _parts_that_exclude_each_other(self, lora: bool, scaled: bool) -> list[str]:
        problems = []
        variant = starts.said("variants", self.variant) if self.variant else {}
        for axis, name in (("variants", self.variant), ("optimizers", self.optimizer)):
            allowed = starts.names(axis)
            if name is not None and name not in allowed:
                problems.append(f"{axis[:-1]}: given {name}, {among(name, allowed)}")
            elif name is not None and not lora:
                problems.append(f"{axis[:-1]} has no meaning with adapter={self.adapter}")
        if self.optimizer is not None and (scaled or "OPTIMIZER" in variant):
            other = "preconditioner=scaled_gd" if scaled else f"variant={self.variant}, which has its own"
            problems.append(f"optimizer={self.optimizer} cannot be had with {other}")
        if self.optimizer == "lora_fa":
            problems.append("optimizer=lora_fa: it steps A-frozen adapters alone, use variant=lora_fa")
        if "FREEZES" in variant:
            zero_A = self.init == "init_b" or self.side == "B"
            if scaled:
                problems.append(f"variant={self.variant} freezes A, and preconditioner=scaled_gd needs both factors")
            if zero_A:
                problems.append(
                    f"variant={self.variant} freezes A, which this start leaves at zero: nothing could move"
                )
        return problems


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSpec:
    """A base model: an asset of the checkout, a Hub repository by commit, a GGUF file in a folder or in an installed
    package, or an architecture with random weights."""

    name: Name
    family: Name
    source: Literal["asset", "hub", "gguf", "package", "config"]
    weights: Literal["pretrained", "random"]
    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    targets: list[str]
    max_length: Count
    repo: str | None = None
    revision: str | None = None
    files: dict[str, str] | None = None
    tokenizer: str | None = None
    bos_token_id: Size | None = None
    """Replaces the first id the tokenizer gives (the few-shot protocol starts OPT's texts with id 0)."""
    architecture: dict[str, Json] | None = None

    @model_validator(mode="after")
    def _source_is_complete(self) -> ModelSpec:
        required = {"asset": ("repo", "files"), "hub": ("repo",), "config": ("architecture", "tokenizer")}
        required |= dict.fromkeys(("gguf", "package"), ("repo", "files"))
        wanted = [*required[self.source], *(("architecture", "tokenizer") if self.weights == "random" else ())]
        missing = [key for key in dict.fromkeys(wanted) if getattr(self, key) is None]
        if missing:
            raise ValueError(f"source={self.source}, weights={self.weights} needs {', '.join(missing)}")
        if self.source == "config" and self.weights != "random":
            raise ValueError("source=config has no pretrained weights; use weights=random")
        if self.source in ("gguf", "package") and len(self.files or {}) != 1:
            raise ValueError(f"source={self.source} needs files with one entry: the GGUF file and its SHA-256")
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
    max_grad_norm: Positive | None = None


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
    read_every: Count | None = None
    """Steps whose loss is read from the device at once; null: 10 on a GPU, 1 on a CPU."""
    compile: bool = False
    """Whether ``torch.compile`` makes the base's layers; of runs trained one by one."""
    bank: Count | None = None
    """Most runs over one base that ``nora launch`` trains in one step; null: as many as pay, 1: every run by itself."""
    generate_tokens: Annotated[int, Field(ge=8)] | None = None
    """Tokens answered from at once, beams and new ones counted (instruct protocols); null: 8192, on a
    GPU by its free memory."""
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
        if self.compile and (self.bank or 1) > 1:
            raise ValueError(f"compile: given true with bank={self.bank}, required bank=1: a bank's layers are its own")
        return self


def has_gpu(settings: ExecSpec) -> bool:
    """Whether runs of this machine go to a GPU, without asking torch."""
    return settings.device == "cuda" or (settings.device == "auto" and shutil.which("nvidia-smi") is not None)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskSpec:
    """A data set and how many of its rows are used.

    The rows come from data/<name>/ (slice), from data/small/<name>/ (small), from the Hub, or from a file of one's own,
    whose prompt, answers and metric are then said here (``nora.tasks.own``)."""

    name: Name
    suite: Name
    source: Literal["slice", "small", "hub", "file"]
    num_train: Count
    num_dev: Count
    num_test: Count
    revision: str | None = None
    files: dict[str, str] | None = None
    file: str | None = None
    """A file, or OWNER/DATASET of the Hub: then with the next three, and ``revision``."""
    test_file: str | None = None
    subset: str | None = None
    split: str | None = None
    test_split: str | None = None
    prompt: str | None = None
    label: str | None = None
    labels: dict[str, str] | None = None
    candidates: str | None = None
    response: str | None = None
    answer: str | None = None
    answer_after: str | None = None
    metric: str | None = None
    id: str | None = None


def _keys_at(schema: object, path: list[str]) -> list[str]:
    """The field names the schema has at a path, [] if it has no say."""
    for part in path:
        schema = get_type_hints(schema).get(part) if is_dataclass(schema) else None
        while schema is not None and not is_dataclass(schema) and get_origin(schema) is not None:
            schema = next((a for a in get_args(schema) if is_dataclass(a)), None)
    return [f.name for f in fields(schema)] if is_dataclass(schema) else []


def unknown_key(path: str, allowed: Sequence[str], prefix: str = "") -> str:
    """What to say about a key that is not there: what is, and the nearest of it."""
    above, _, name = path.rpartition(".")
    said = among(name, allowed, "allowed here:", f"{prefix}{above}." if above else prefix)
    return f"{path}: unknown key, {said}"


def _sentence(error: ErrorDetails, schema: type, prefix: str) -> str:
    location = [str(part) for part in error["loc"]]
    path = ".".join(location)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return unknown_key(
            path, _keys_at(schema, location[:-1]), prefix if prefix.endswith(".") else ""
        )  # not a file's
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
        hint = nearest(str(given), options)
    return f"{path}: given {given!r}, {hint}{' ' if hint else ''}{message}"


def validate(value: object, schema: type[Checked], *, prefix: str = "") -> Checked:
    """The value as ``schema``; UserError with every problem, each with its path, what was given and what is allowed."""
    try:
        return TypeAdapter(schema).validate_json(
            json.dumps(value)
        )  # JSON mode: strict types, yet dicts make dataclasses
    except ValidationError as error:
        problems, listed = [], set[str]()
        for problem in (_sentence(e, schema, prefix) for e in error.errors(include_url=False)):
            known = re.search(r",? allowed here: ([^;]*)", problem)
            problems.append(problem.replace(known[0], "") if known and known[1] in listed else problem)
            listed |= {known[1]} if known else set()  # what is allowed in a place is said once
        raise UserError("; ".join(prefix + p for p in problems)) from None

"""slurm/profiles/<site>.yaml: what a site calls things and what a run gets; the same for Hydra's own launchers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from nora.config import limits
from nora.config.compose import compose_config
from nora.config.schema import Count, ExecSpec, Positive, Size, validate
from nora.errors import UserError, one_of
from nora.files import Json
from nora.kinds import Spec

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_SAFE_SETUP = "set -euo pipefail"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Gpu:
    """How the site spells a GPU."""

    spelling: Literal["gpus_per_node", "gres"]
    type: str | None = None
    memory_gib: Positive | None = None
    """What a run may be planned for; null: 80."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Resources:
    """What one task of an array is given."""

    gpus: Size
    cpus: Count
    mem_gb: Positive
    time_min: Count


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ResourceChange:
    """A base model's departure from its kind's resources."""

    gpus: Size | None = None
    cpus: Count | None = None
    mem_gb: Positive | None = None
    time_min: Count | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Profile:
    """One site; the commented example is slurm/profiles/h100.yaml."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu: Gpu
    resources: dict[str, Resources]
    models: dict[str, ResourceChange]
    setup: Annotated[list[str], Field(min_length=1)]
    scratch: str | None = None
    max_array_size: Count
    parallel: Count
    runs_per_task: Count
    signal_delay_s: Count
    max_attempts: Count
    requeue: bool = True
    extra: dict[str, str | int | bool]

    def resources_of(self, kind: str, model: str | None) -> Resources:
        """What a run of ``kind`` on ``model`` is given; UserError where the profile does not say."""
        if kind not in self.resources:
            raise UserError(f"slurm profile: resources.{kind}: missing, the profile has {', '.join(self.resources)}")
        base = self.resources[kind]
        change = self.models.get(model or "")
        given = {key: value for key, value in vars(change).items() if value is not None} if change else {}
        return replace(base, **{key: given[key] for key in ("gpus", "cpus", "mem_gb", "time_min") if key in given})

    def sbatch_options(self, gpus: int) -> dict[str, Json]:
        """Where a job with this many GPUs goes and how the site spells them, in submitit's names."""
        options = {key: getattr(self, key) for key in ("partition", "account", "qos", "constraint")}
        # --requeue: some sites have JobRequeue=0 and then refuse `scontrol requeue`
        extra: dict[str, Json] = {"requeue" if self.requeue else "no-requeue": True}
        kind = self.gpu.type
        if gpus and self.gpu.spelling == "gres":
            options["gres"] = f"gpu:{kind}:{gpus}" if kind else f"gpu:{gpus}"
        elif gpus and kind is None:
            options["gpus_per_node"] = gpus
        elif gpus:
            extra["gpus-per-node"] = f"{kind}:{gpus}"
        extra |= self.extra
        options["additional_parameters"] = {key: value for key, value in extra.items() if value is not False}
        return {key: value for key, value in options.items() if value is not None}

    def setup_lines(self) -> list[str]:
        """The job script's own lines before srun."""
        return [*self.setup, *([] if self.scratch is None else [f'export TMPDIR="{self.scratch}"'])]


def load_profile(checkout: Path, settings: ExecSpec) -> Profile:
    """The profile ``exec.profile`` names, with what exec says instead; UserError with every problem at once."""
    folder = checkout / "slurm" / "profiles"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    one_of("exec.profile", str(settings.profile), names, "slurm/profiles has")
    path = folder / f"{settings.profile}.yaml"
    limits.check_file(path)
    try:
        content: Json = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"slurm/profiles/{path.name}: {' '.join(str(error).split())}") from None
    profile = validate(content, Profile, prefix=f"slurm/profiles/{path.name}: ")
    if profile.setup[0] != _SAFE_SETUP:
        raise UserError(
            f"slurm/profiles/{path.name}: setup: its first line is {profile.setup[0]!r}, required {_SAFE_SETUP!r}: "
            "without it a failing setup line does not stop the job"
        )
    said = {key: getattr(settings, key) for key in ("partition", "parallel", "runs_per_task", "max_array_size")}
    return replace(profile, **{key: value for key, value in said.items() if value is not None})


_SLURM, _LOCAL = "submitit_slurm", "submitit_local"
_PLACING = ("exec.profile", "exec.partition", "exec.parallel")
_UNBOUNDED = 1_000_000  # requeues
# Several spellings of one resource: who types one of them gets none of the profile's.
_ALTERNATIVES = (
    {"gres", "gpus_per_node", "gpus_per_task"},
    {"mem_gb", "mem_per_gpu", "mem_per_cpu"},
    {"cpus_per_task", "cpus_per_gpu"},
)


Launcher = Callable[[Sequence[Spec]], tuple[str, dict[str, Json]]]
"""The specs of a sweep → a launcher of Hydra's and its settings."""


def place(arguments: Sequence[str], checkout: Path) -> tuple[list[str], Launcher | None]:
    """The words of ``nora run`` without those that choose a place, and the launcher's settings as a function of the
    sweep's specs; None where no submitit launcher is asked for (or the local one without a profile)."""
    chosen = [word.partition("=")[2] for word in arguments if word.startswith("hydra/launcher=")]
    words = [word for word in arguments if word.partition("=")[0] in _PLACING]
    if chosen not in ([_SLURM], [_LOCAL]) or (chosen == [_LOCAL] and not words):
        return list(arguments), None
    config = compose_config(checkout / "conf", ["exec=slurm", *words])
    settings = validate(config["exec"], ExecSpec, prefix="exec.")
    profile = load_profile(checkout, settings)
    typed = {word.partition("=")[0].lstrip("+~").removeprefix("hydra.launcher.") for word in arguments}
    rest = [word for word in arguments if word not in words]
    return rest, partial(_settings, chosen[0], profile, typed)


def _settings(name: str, profile: Profile, typed: set[str], specs: Sequence[Spec]) -> tuple[str, dict[str, Json]]:
    resources = _largest(profile, specs)
    if name == _LOCAL:  # starts everything at once on this machine: only the time means anything
        return name, {"timeout_min": resources.time_min}
    options = profile.sbatch_options(resources.gpus)
    if typed & _ALTERNATIVES[0]:
        options["additional_parameters"].pop("gpus-per-node", None)
    settings: dict[str, Json] = {
        "name": "nora-multirun",
        "timeout_min": resources.time_min,
        "cpus_per_task": resources.cpus,
        "mem_gb": math.ceil(resources.mem_gb),
        "signal_delay_s": profile.signal_delay_s,
        "array_parallelism": profile.parallel,
        "max_num_timeout": _UNBOUNDED if profile.requeue else 0,
        "setup": [_for_bash_alone(line) for line in profile.setup_lines()],
        **options,
    }
    if not typed & _ALTERNATIVES[2]:  # srun in a batch job does not take over --cpus-per-task from 22.05 on
        settings["setup"].append(f"export SRUN_CPUS_PER_TASK={resources.cpus}")
    dropped = {key for group in _ALTERNATIVES if group & typed for key in group}
    return name, {key: value for key, value in settings.items() if key not in dropped}


def _for_bash_alone(line: str) -> str:
    """The line without ``${``, which Hydra would resolve, some values once and some three times, on the way."""
    if "${" not in line:
        return line
    text = line.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\x24{")
    return f"eval $'{text}'"


def _largest(profile: Profile, specs: Sequence[Spec]) -> Resources:
    """What every job of a sweep is given (Hydra's launcher has one set): the most that any of its runs needs."""
    classes = {(spec.kind, getattr(getattr(spec, "model", None), "name", None)) for spec in specs}
    needs = [profile.resources_of(*one) for one in sorted(classes, key=str)]
    return Resources(
        gpus=max(r.gpus for r in needs),
        cpus=max(r.cpus for r in needs),
        mem_gb=max(r.mem_gb for r in needs),
        time_min=max(r.time_min for r in needs),
    )

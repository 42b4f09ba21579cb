"""slurm/profiles/<site>.yaml: what a site calls things and how much of them a run gets."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from nora.runs import limits
from nora.runs.errors import UserError
from nora.runs.schema import Count, ExecSpec, Positive, Size, validate

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_SAFE_SETUP = "set -euo pipefail"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Gpu:
    """How the site spells a GPU."""

    spelling: Literal["gpus_per_node", "gres"]
    type: str | None = None


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

    def sbatch_options(self, gpus: int) -> dict[str, Any]:
        """Where a job with this many GPUs goes and how the site spells them, in submitit's names."""
        options = {key: getattr(self, key) for key in ("partition", "account", "qos", "constraint")}
        # --requeue: some sites have JobRequeue=0 and then refuse `scontrol requeue`
        extra: dict[str, Any] = {"requeue" if self.requeue else "no-requeue": True}
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
    if settings.profile not in names:
        near = difflib.get_close_matches(str(settings.profile), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"exec.profile: given {settings.profile!r}, slurm/profiles has {', '.join(names)}{hint}")
    path = folder / f"{settings.profile}.yaml"
    limits.check_file(path)
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"slurm/profiles/{path.name}: {' '.join(str(error).split())}") from None
    profile: Profile = validate(content, Profile, prefix=f"slurm/profiles/{path.name}: ")
    if profile.setup[0] != _SAFE_SETUP:
        raise UserError(
            f"slurm/profiles/{path.name}: setup: its first line is {profile.setup[0]!r}, required {_SAFE_SETUP!r}: "
            "without it a failing setup line does not stop the job"
        )
    said = {key: getattr(settings, key) for key in ("partition", "parallel", "runs_per_task", "max_array_size")}
    return replace(profile, **{key: value for key, value in said.items() if value is not None})

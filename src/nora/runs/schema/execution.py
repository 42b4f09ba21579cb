"""``exec``: where and how a run executes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nora.runs.schema.fields import STRICT, Count, Name


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

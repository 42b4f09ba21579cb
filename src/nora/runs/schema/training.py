"""What every protocol that trains has in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nora.runs.schema.fields import STRICT, Count, NonNegative, Positive


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

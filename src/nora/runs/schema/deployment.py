"""``kind=deployment``: an adapter that is trained a little, saved and loaded by others."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from nora.runs.schema.fields import STRICT, Count, Positive, Seed
from nora.runs.schema.model import ModelSpec


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

"""``kind=deployment``: does an adapter, really trained from one start, load, switch and merge on an untouched base?

Stock PEFT and stock diffusers load what they saved themselves and what ``nora.adapters`` saved; every figure is the
largest absolute difference of an output from the trained model's own, or of a weight from the base's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from nora.config.schema import STRICT, Count, ModelSpec, Positive, Seed
from nora.errors import Interrupted, UserError
from nora.files import Json
from nora.kinds.parts.cost import Cost, Label

if TYPE_CHECKING:
    from nora.kinds.parts.recipe import Outcome, RunContext


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeployedAdapter:
    """The adapter that is deployed: a start by PEFT's or our name, a variant of LoRA, and its size."""

    init: Literal[
        "kaiming", "gaussian", "orthogonal", "nystrom", "pissa", "pissa_niter_4", "olora", "init_b", "milora",
        "nystrom_gradient", "eva", "corda", "lora_ga", "lora_one",
    ]  # fmt: skip
    rank: Count
    alpha: Count
    xi: Positive
    variant: Literal["dora", "rslora", "lora_fa"] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeploymentProtocol:
    """How long the adapter is trained before it is saved (AdamW)."""

    name: Literal["deployment"]
    version: Count
    steps: Count
    lr: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """One start, deployed on a text model and on a UNet."""

    kind: Literal["deployment"]
    model: ModelSpec
    adapter: DeployedAdapter
    protocol: DeploymentProtocol
    seed: Seed


def label(spec: Spec) -> Label:
    """A start, or a variant, on a base."""
    names = (spec.adapter.variant or spec.adapter.init, spec.model.name)
    return Label(*names, names)


def headline(metrics: Mapping[str, Json]) -> str:
    """How far each host's output is off after loading."""
    loaded = {host: metrics[host]["portable"]["alone"] for host in ("text", "diffusion")}
    return ", ".join(f"{host} output off by {value:.1e} after loading" for host, value in loaded.items())


def like(spec: Spec) -> tuple[str, str, str]:
    """Runs of one base and start over as many steps cost about the same."""
    return spec.model.name, spec.adapter.variant or spec.adapter.init, str(spec.protocol.steps)


_NARROWEST = 32  # the narrowest adapted layer of the UNet of kinds/parts/hosts.py


def check(spec: Spec, checkout: Path) -> None:
    """UserError for a rank that the UNet's layers have no room for."""
    del checkout
    if spec.adapter.rank > _NARROWEST:
        raise UserError(
            f"adapter.rank: given {spec.adapter.rank}, required at most {_NARROWEST}, the smaller side of to_q in the "
            "UNet it is deployed on"
        )


def cost(spec: Spec) -> Cost:
    """Not known before one was made."""
    del spec
    return Cost()


def execute(spec: Spec, context: RunContext) -> Outcome:
    """Trains and deploys the adapter on both hosts; the proof is that of the start on the text model."""
    from nora.kinds.parts.deploy import measure, prove_text_start
    from nora.kinds.parts.hosts import DiffusionHost, Host, TextHost
    from nora.kinds.parts.recipe import Outcome, Update

    started = time.monotonic()
    text = TextHost(spec, context)
    hosts: dict[str, Host] = {"text": text, "diffusion": DiffusionHost(spec)}
    metrics: dict[str, Json] = {}
    for number, (name, host) in enumerate(hosts.items()):
        if context.stop_requested():
            raise Interrupted(number, saved=False)
        context.report(Update(name, number, len(hosts), {}))
        with tempfile.TemporaryDirectory() as folder:
            metrics[name] = measure(host, spec, Path(folder))
    return Outcome(metrics=metrics, proof=prove_text_start(text, spec), run={"seconds": time.monotonic() - started})

"""The kinds of run and the schema of each one's spec."""

from __future__ import annotations

from nora.runs.schema.deployment import DeploymentSpec
from nora.runs.schema.dreambooth import DreamboothSpec
from nora.runs.schema.factorize import FactorizeSpec
from nora.runs.schema.finetune import FinetuneSpec

Spec = FinetuneSpec | FactorizeSpec | DeploymentSpec | DreamboothSpec
KINDS: dict[str, type] = {
    "finetune": FinetuneSpec, "factorize": FactorizeSpec, "deployment": DeploymentSpec, "dreambooth": DreamboothSpec,
}  # fmt: skip

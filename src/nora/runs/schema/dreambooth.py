"""``kind=dreambooth``: a pipeline, a subject and a method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nora.runs.schema.fields import STRICT, Count, Name, NonNegative, Seed, Size
from nora.runs.schema.method import MethodSpec
from nora.runs.schema.model import ModelSpec
from nora.runs.schema.training import TrainingProtocol


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

"""What is trained: the base model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from nora.runs.schema.fields import STRICT, Count, Name, Size


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

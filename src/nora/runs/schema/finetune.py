"""``kind=finetune``: a base model on the rows of a task, by a few-shot or an instruct protocol."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nora.runs.schema.fields import STRICT, Count, Name, Seed, Size
from nora.runs.schema.method import MethodSpec
from nora.runs.schema.model import ModelSpec
from nora.runs.schema.training import TrainingProtocol


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskSpec:
    """A data set and how many of its rows are used."""

    name: Name
    suite: Name
    source: Literal["slice", "hub"]
    num_train: Count
    num_dev: Count
    num_test: Count
    revision: str | None = None
    files: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FewShotProtocol(TrainingProtocol):
    """Training and evaluation rules of the few-shot tasks."""

    name: Literal["mezo"]
    epochs: Size
    warmup_steps: Size
    precision: Literal["fp32", "bf16"]
    share_prompt: bool
    max_steps: Count | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InstructProtocol(TrainingProtocol):
    """Training on instructions and scoring generated answers (paper, Tables 4 and 9)."""

    name: Literal["llm_adapters", "llm_adapters_released", "llm_adapters_modern", "metamath"]
    epochs: Size
    warmup_steps: Size | None
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None
    precision: Literal["fp32", "bf16", "fp16"]
    """fp16: autocast with a scaled loss, as the paper's scripts train (their base is model.dtype=float16)."""
    cutoff: Count
    """Tokens of a training text; a longer one is cut on the right (and has no end-of-sequence token)."""
    loss_on: Literal["text", "answer"]
    eval_every: Count | None
    """Steps between dev losses; null: at the end of each epoch."""
    keep: Literal["lowest_dev_loss", "last"]
    beams: Count
    max_new_tokens: Count
    merge: bool
    """Whether the adapter is merged into the weights before answers are generated."""
    sketch: Literal["applied", "lost"]
    """"lost" reproduces the released code: a Nyström init is declared and Kaiming's is what trains."""
    precondition: Literal["step", "micro_batch"]
    max_steps: Count | None = None
    eval_backend: Literal["vllm"] | None = None
    """What generates the answers; null: transformers."""

    @model_validator(mode="after")
    def _fields_fit(self) -> InstructProtocol:
        problems = []
        if (self.warmup_steps is None) == (self.warmup_ratio is None):
            problems.append("give either warmup_steps or warmup_ratio")
        if self.eval_backend == "vllm" and self.beams != 1:
            problems.append(f"beams: given {self.beams}, required 1 with eval_backend=vllm (greedy protocols alone)")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneSpec:
    """``kind=finetune``: one base model, one task, one method."""

    kind: Literal["finetune"]
    model: ModelSpec
    task: TaskSpec
    method: MethodSpec
    protocol: Annotated[FewShotProtocol | InstructProtocol, Field(discriminator="name")]
    seed: Seed
    measure: list[Literal["spectrum", "zero_shot"]]

    @model_validator(mode="after")
    def _parts_fit(self) -> FinetuneSpec:
        if isinstance(self.protocol, InstructProtocol) and self.method.adapter != "lora":
            merging = "merge" if self.protocol.merge else "eval_backend" if self.protocol.eval_backend else None
            if merging is not None:
                raise ValueError(
                    f"protocol.{merging}: merges the adapter into the weights, which adapter={self.method.adapter} "
                    "cannot; required adapter=lora"
                )
        return self

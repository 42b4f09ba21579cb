"""How an adapter is started and its gradients are treated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nora.runs.schema.fields import STRICT, Count, Name, NonNegative, Positive

_LORA_ONLY = ("rank", "alpha", "dropout")
_NYSTROM_ONLY = ("xi", "side", "divide_by_scaling")
_PRECONDITIONER_ONLY = ("normalize", "damping")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MethodSpec:
    """An adapter and how it starts and steps."""

    name: Name
    adapter: Literal["lora", "prefix"]
    init: Name
    rank: Count | None = None
    alpha: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    xi: Positive | None = None
    side: Literal["A", "B"] | None = None
    divide_by_scaling: bool | None = None
    preconditioner: Literal["scaled_gd"] | None = None
    normalize: Literal["frobenius", "none"] | None = None
    damping: NonNegative | None = None
    num_virtual_tokens: Count | None = None

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> MethodSpec:
        groups = {
            _LORA_ONLY: (self.adapter == "lora", f"adapter={self.adapter}"),
            _NYSTROM_ONLY: (self.init == "nystrom", f"init={self.init}"),
            _PRECONDITIONER_ONLY: (self.preconditioner is not None, "preconditioner=null"),
            ("num_virtual_tokens",): (self.adapter == "prefix", f"adapter={self.adapter}"),
        }
        problems = []
        for keys, (wanted, because) in groups.items():
            for key in keys:
                given = getattr(self, key) is not None
                if given and not wanted:
                    problems.append(f"{key} has no meaning with {because}")
                elif wanted and not given:
                    problems.append(f"{key} is required with {because}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

"""The types that fields of a config have: numbers with their ranges, names, and strictness for all of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_MOST = 10**9  # more steps, rows, tokens or bytes of a thing are a slip: such a run would never end
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=_MOST)]
Size = Annotated[int, Field(ge=0, le=_MOST)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

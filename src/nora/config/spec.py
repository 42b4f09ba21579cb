"""A run is a value: the resolved spec as plain data, its canonical JSON and the id made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from nora.files import Json, canonical_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ID_LENGTH = 16  # hex digits: 64 bits


def without_nulls(value: Json) -> Json:
    """The value without the mapping entries that are null: null means "as before this field existed"."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(v) for v in value]
    return value


def spec_dict(spec: DataclassInstance) -> dict[str, Json]:
    """The spec as plain data, nulls left out."""
    plain: dict[str, Json] = without_nulls(asdict(spec))
    return plain


def run_id(spec: DataclassInstance | Mapping[str, Json]) -> str:
    """First 16 hex digits of SHA-256 over the canonical JSON of the resolved spec."""
    plain = without_nulls(spec) if isinstance(spec, Mapping) else spec_dict(spec)
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()[:ID_LENGTH]


def versionless_id(spec: DataclassInstance | Mapping[str, Json]) -> str:
    """The id without the protocol's version: two specs that share it differ by code that changed a number."""
    plain = spec if isinstance(spec, Mapping) else spec_dict(spec)
    protocol = {k: v for k, v in plain["protocol"].items() if k != "version"}
    return run_id({**plain, "protocol": protocol})

"""A value as a schema, or one line with every problem: its path, what was given, what is allowed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from nora.runs.errors import UserError
from nora.runs.schema.finetune import FinetuneSpec

# The one union of the schemas is that of FinetuneSpec's protocols, told apart by their names.
_PROTOCOLS: dict[str, Any] = {
    name: protocol
    for protocol in get_args(get_type_hints(FinetuneSpec)["protocol"])
    for name in get_args(get_type_hints(protocol)["name"])
}


def _keys_at(schema: Any, path: list[str], protocol: str | None) -> list[str]:
    """The field names the schema has at a path, [] where it has no say; ``protocol`` says which of the union."""
    for part in path:
        hints = get_type_hints(schema) if is_dataclass(schema) else {}
        schema = _PROTOCOLS[protocol] if part == "protocol" and protocol is not None else hints.get(part)
        while schema is not None and not is_dataclass(schema) and get_origin(schema) is not None:
            schema = next((a for a in get_args(schema) if is_dataclass(a)), None)
    return [f.name for f in fields(schema)] if is_dataclass(schema) else []


def unknown_key(path: str, allowed: Sequence[str], prefix: str = "") -> str:
    """What to say about a key that is not there: what is, and the nearest of it."""
    *above, name = path.split(".")
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {prefix}{'.'.join([*above, *near])}?" if near else ""
    return f"{path}: unknown key, allowed here: {', '.join(allowed)}{hint}"


def _sentence(error: Any, schema: type, prefix: str) -> str:
    location = [str(part) for part in error["loc"]]
    protocol = None
    if location[:1] == ["protocol"] and location[1:2] and location[1] in _PROTOCOLS:
        protocol = location.pop(1)  # which of the union's protocols it is: no part of the config's path
    path = ".".join(location)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        allowed = _keys_at(schema, location[:-1], protocol)
        return unknown_key(path, allowed, prefix if prefix.endswith(".") else "")  # not a file's name
    if error["type"] == "union_tag_invalid":
        given = error["ctx"]["tag"]
        near = difflib.get_close_matches(given, _PROTOCOLS, n=1)
        return f"{path}.name: given {given!r}, allowed {', '.join(_PROTOCOLS)}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    if error["type"] in ("missing", "missing_argument"):
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = error.get("input")
    if isinstance(given, dict) or type(given).__name__.endswith("ArgsKwargs"):
        return f"{path}: {message}" if path else message
    hint = ""
    if error["type"] == "literal_error":
        options = [part.strip(" '") for part in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(given), options, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
    return f"{path}: given {given!r}, {message}{hint}"


def validate(value: Any, schema: type, *, prefix: str = "") -> Any:
    """The value as ``schema``; UserError with every problem, each with its path, what was given and what is allowed."""
    try:
        return TypeAdapter(schema).validate_json(
            json.dumps(value)
        )  # JSON mode: strict types, yet dicts make dataclasses
    except ValidationError as error:
        problems = [_sentence(e, schema, prefix) for e in error.errors(include_url=False)]
        raise UserError("; ".join(prefix + p for p in problems)) from None

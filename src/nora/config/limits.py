"""Quick refusal of configurations that would blow up: size, depth, aliases, interpolation growth."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container

from nora.errors import UserError
from nora.files import Json

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 32
MAX_WORDS = 500
MAX_SECONDS = 3.0
_REFERENCE = re.compile(r"\$\{([^${}:]+)\}")
_SURROUNDINGS = re.compile(r"\$\{\s*(oc\.env|hydra|now|exec)\b")
"""What is read of the machine, not of the config: a secret of it would stand in every record."""
_LONG_DIGITS = re.compile(r"\d[\d_]{300,}")
"""More than a float holds, and from some length on more than Python reads."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _line(mark: Any) -> int | None:
    return mark.line + 1 if mark is not None else None


def check_file(path: Path) -> None:
    """Refuses a YAML file that is no UTF-8 or over 1 MB, and what ``check_text`` refuses, without building it."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{path}: {size} bytes, allowed {MAX_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 at byte {error.start}") from None
    check_text(text, str(path))


def check_text(text: str, where: str) -> None:
    """Refuses a YAML text of over 10,000 nodes, deeper than 32, with aliases, tags, a number of over
    300 digits or a key that stands twice."""
    nodes = 0
    open_keys: list[dict[str, None] | None] = []
    """Of every open collection: a mapping's keys so far, None for a list."""
    is_key: list[bool] = []
    """Whether a mapping's next node is a key."""
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            at = f"{where}, line {_line(event.start_mark)}"
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{at}: YAML aliases are not allowed; write the value out")
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise UserError(f"{at}: the tag {tag} is not allowed; write the plain value")
            if isinstance(event, yaml.ScalarEvent) and _LONG_DIGITS.fullmatch(event.value.lstrip("+-")):
                raise UserError(f"{at}: a number of {len(event.value)} digits, allowed 300")
            if isinstance(event, yaml.NodeEvent):
                nodes += 1
                if open_keys and (keys := open_keys[-1]) is not None:
                    if is_key[-1] and isinstance(event, yaml.ScalarEvent):
                        if event.value in keys:
                            raise UserError(f"{at}: {event.value} stands twice; keep one")
                        keys[event.value] = None
                    is_key[-1] = not is_key[-1]
            if isinstance(event, yaml.CollectionStartEvent):
                open_keys.append({} if isinstance(event, yaml.MappingStartEvent) else None)
                is_key.append(True)
            elif isinstance(event, yaml.CollectionEndEvent):
                open_keys.pop()
                is_key.pop()
            if nodes > MAX_NODES:
                raise UserError(f"{where}: more than {MAX_NODES} values")
            if len(open_keys) > MAX_DEPTH:
                raise UserError(f"{where}: nested deeper than {MAX_DEPTH}")
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = f", line {line + 1}" if line is not None else ""
        raise UserError(
            f"{where}{at}: not valid YAML ({getattr(error, 'problem', None) or ' '.join(str(error).split())})"
        ) from None


@cache
def check_folder(folder: Path) -> None:
    """``check_file`` on every YAML file below ``folder``, once per process."""
    for path in sorted(folder.rglob("*.yaml")):
        check_file(path)


def check_overrides(overrides: tuple[str, ...]) -> None:
    """The same limits for what was typed."""
    if len(overrides) > MAX_WORDS:
        raise UserError(f"{len(overrides)} words, allowed {MAX_WORDS}; many values are a file of conf/experiment/")
    for override in overrides:
        if len(key := override.partition("=")[0]) > 200:  # a file system's names end at 255
            raise UserError(f"{key[:40]}…: a key of {len(key)} characters, allowed 200")
        if len(override) > 10_000:
            raise UserError(f"{override[:40]}…: {len(override)} characters, allowed 10000")
        if found := _LONG_DIGITS.search(override):
            raise UserError(f"{override[:40]}…: a number of {len(found[0])} digits, allowed 300")
        if sum(override.count(c) for c in "[{,") > 1_000 or override.count("[") + override.count("{") > MAX_DEPTH * 2:
            raise UserError(f"{override[:40]}…: too many or too deeply nested values")


class _Spent(BaseException):
    """No Exception: OmegaConf wraps those on every level."""


@contextmanager
def bounded_resolution(where: str) -> Iterator[None]:
    """UserError where OmegaConf, in here, resolves more than 10,000 references, or for more than three seconds of
    processor time: what no pattern sees (``${..a}``, ``${a[b]}``, ``${${a}.b}``, resolvers) may grow without end."""
    resolve, left, until = Container.resolve_parse_tree, MAX_NODES, time.process_time() + MAX_SECONDS

    def counted(self: Container, *given: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or time.process_time() > until:  # its own time: a loaded machine refuses nothing
            raise _Spent
        return resolve(self, *given, **named)

    try:
        setattr(Container, "resolve_parse_tree", counted)  # noqa: B010 (the one place every reference passes)
        yield
    except _Spent:
        raise UserError(f"{where[:80]}: its references grow to more than {MAX_NODES} values") from None
    except RecursionError:
        raise UserError(f"{where[:80]}: a reference refers to itself") from None
    finally:
        setattr(Container, "resolve_parse_tree", resolve)  # noqa: B010


def check_interpolations(config: dict[str, Json]) -> None:
    """Refuses references that run in circles or grow past 10,000 values, and those of a run to its surroundings, before
    anything resolves them."""
    sizes: dict[str, int] = {}

    def look_up(path: str) -> Json:
        node: Json = config
        for part in path.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def size(node: Json, where: str, open_paths: tuple[str, ...], depth: int) -> int:
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: nested deeper than {MAX_DEPTH}")
        if isinstance(node, dict):
            total = 1 + sum(size(v, f"{where}.{k}".strip("."), open_paths, depth + 1) for k, v in node.items())
        elif isinstance(node, list):
            total = 1 + sum(size(v, where, open_paths, depth + 1) for v in node)
        elif isinstance(node, str):
            total = 1
            if (found := _SURROUNDINGS.search(node)) and where.partition(".")[0] != "exec":
                raise UserError(
                    f"{where}: refers to {found[1]}, which is read of this machine; a run is made of its config alone "
                    "(exec may refer to it)"
                )
            for path in _REFERENCE.findall(node):
                if path in open_paths:
                    raise UserError(f"{where}: ${{{path}}} refers to itself")
                if path not in sizes:
                    sizes[path] = size(look_up(path), path, (*open_paths, path), depth + 1)
                total += sizes[path]
        else:
            total = 1
        if total > MAX_NODES:
            raise UserError(f"{where}: its references grow to more than {MAX_NODES} values")
        return total

    size(config, "", (), 0)

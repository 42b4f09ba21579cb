"""Hydra's compose behind one clear error: every way a config can be wrong becomes a UserError."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import hydra
import omegaconf
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nora import starts
from nora.config import limits
from nora.errors import UserError, among
from nora.files import Json

_Files = tuple[tuple[str, int, int], ...]
"""Path, time and size of every file that a composition may read."""
OWN_STORE = "exec.results=results/mine"
"""The word `nora run` adds where no place for its records is typed; no message repeats it."""


def folders(conf: Path) -> list[Path]:
    """Where configs are: ``conf/``, and the folder of ``--config-dir``."""
    own = os.environ.get(starts.FOLDER)
    return [conf, Path(own)] if own else [conf]


def choices(conf: Path, group: str) -> list[str]:
    """The files of one config group."""
    return sorted({path.stem for folder in folders(conf) for path in (folder / group).glob("*.yaml")})


def _is_group(conf: Path, key: str) -> bool:
    return key.startswith("hydra") or (conf / key).is_dir()


def permit_new_keys(conf: Path, overrides: Sequence[str]) -> list[str]:
    """Overrides of values written so that Hydra accepts unknown keys: the schema names them all, with the rest."""
    permitted = []
    for override in overrides:
        key = override.split("=", 1)[0]
        plain = "=" in override and key[:1] not in "+~" and "@" not in key
        permitted.append(f"++{override}" if plain and not _is_group(conf, key.replace(".", "/")) else override)
    return permitted


def _check_choices(conf: Path, overrides: Sequence[str]) -> None:
    problems = []
    for override in overrides:
        key, _, value = override.partition("=")
        group = key.lstrip("+")
        if key.startswith("hydra") or not (conf / group).is_dir() or value == "null":
            continue
        allowed = choices(conf, group)
        if value not in allowed and (re.fullmatch(r"[\w.\-]*", value) or re.search(r"[\[{$/]", value)):
            problems.append(f"{group}: given {value!r}, {among(value, allowed)}")
    if problems:
        raise UserError("; ".join(problems))


def first_line(error: BaseException) -> str:
    """What an error of Hydra or OmegaConf says first, on one line, without its grammar's class and caret."""
    said = re.sub(r"^Lexer\w+: ", "", str(error).partition("\nConfig search path:")[0])
    lines = [line.strip() for line in said.splitlines() if line.strip(" ^") and "hydra.cc" not in line]
    return " ".join(lines[:2]) if lines else type(error).__name__


def compose_config(conf: Path, overrides: Sequence[str]) -> dict[str, Json]:
    """The composed, resolved config as plain data. Raises UserError; draws on no other state, so that what was asked
    before (targets share most of their cells) is only copied, as long as no file has changed."""
    files = tuple(
        sorted(
            (entry.path, entry.stat().st_mtime_ns, entry.stat().st_size)
            for folder in folders(conf)
            for entry in _entries(folder)
            if entry.name.endswith(".yaml")
        )
    )
    if _known is None or all(word.startswith("exec") for word in overrides):  # a workspace's is all about exec
        made = _composed(conf, tuple(overrides), files)
    else:
        made = _recalled(conf, tuple(overrides), files, _known)
    return json.loads(made) if isinstance(made, str) else copy.deepcopy(made)


_known: dict[str, Json] | None = None


@contextmanager
def remembering(known: dict[str, Json]) -> Iterator[None]:
    """Within it what ``known`` has of the same files is not composed again, and what is composed is put there, without
    ``exec``, which may refer to the surroundings. For what is only shown: composing is most of what it costs."""
    global _known
    before, _known = _known, known
    try:
        yield
    finally:
        _known = before


def _recalled(conf: Path, overrides: tuple[str, ...], files: _Files, known: dict[str, Json]) -> str | dict[str, Json]:
    own = Path(__file__).stat()
    state = f"{hydra.__version__} {omegaconf.__version__} {own.st_mtime_ns} {own.st_size} {files}"
    group = hashlib.sha256(state.encode()).hexdigest()
    for stale in [key for key in known if not key.startswith(group)]:
        del known[stale]
    key = " ".join([group, *overrides])
    if key not in known:
        made = _composed(conf, overrides, files)
        whole = json.loads(made) if isinstance(made, str) else made
        kept = {name: value for name, value in whole.items() if name != "exec"}
        text = _as_text(kept)
        if text is None:
            return kept
        known[key] = text
    recalled: str = known[key]
    return recalled


def _as_text(made: dict[str, Json]) -> str | None:
    """As JSON; None where JSON cannot keep it (a key that is a number, bytes)."""
    with suppress(TypeError, ValueError):
        text = json.dumps(made)
        return text if json.loads(text) == made else None
    return None


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Every file below a folder (a few times faster than Path.rglob, which shows in ``nora plan``)."""
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _entries(entry.path)
        else:
            yield entry


def run_words(overrides: Sequence[str]) -> list[str]:
    """A command that makes a run, with the folder of ``--config-dir`` where there is one."""
    own = os.environ.get(starts.FOLDER)
    return ["nora", "run", *overrides, *(["--config-dir", own] if own else [])]


def search_path() -> list[str]:
    """Hydra's own word for the folder of ``--config-dir``."""
    own = os.environ.get(starts.FOLDER)
    return [f"hydra.searchpath=['file://{own}']"] if own else []


def _missing(node: Json, path: str = "") -> Iterator[str]:
    """Paths of the values that are still ???."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{path}.{key}".removeprefix("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _missing(value, f"{path}[{i}]")
    elif node == "???":
        yield path


@contextmanager
def _quick_yaml() -> Iterator[None]:
    """OmegaConf reads YAML with libyaml, where PyYAML has it: a fifth of what composing costs."""
    slow = yaml.SafeLoader
    try:
        yaml.SafeLoader = getattr(yaml, "CSafeLoader", slow)  # type: ignore[misc]
        yield
    finally:
        yaml.SafeLoader = slow  # type: ignore[misc]


@lru_cache(maxsize=1024)
def _composed(conf: Path, overrides: tuple[str, ...], files: _Files) -> str | dict[str, Json]:
    """As JSON: a thousand configurations as objects would be walked by every pass of Python's collector, and a copy of
    one costs more than reading it."""
    del files  # part of the key
    for folder in folders(conf):
        limits.check_folder(folder)
    limits.check_overrides(overrides)
    try:
        parsed = OverridesParser.create().parse_overrides(overrides=list(overrides))
    except (OverrideParseException, HydraException) as error:
        raise UserError(f"{first_line(error)} (an override is key=value)") from None
    several = [one.input_line for one in parsed if one.is_sweep_override()]
    if several:
        raise UserError(f"{', '.join(map(str, several))}: several values; `nora run -m` runs each, key=[a,b] is a list")
    _check_choices(conf, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), version_base="1.3"), _quick_yaml():
            config = compose("config", [*search_path(), *permit_new_keys(conf, overrides)])
        plain: Json = OmegaConf.to_container(config, resolve=False)
        limits.check_interpolations(plain)
        missing = sorted(_missing(plain))
        if missing:
            raise UserError("; ".join(f"{key}: a value is required (???), give {key}=…" for key in missing))
        with limits.bounded_resolution(" ".join(word for word in overrides if word != OWN_STORE) or "conf"):
            made: dict[str, Json] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        return _as_text(made) or made
    except ConfigCompositionException as error:
        cause = error.__cause__
        detail = f" ({first_line(cause)})" if cause is not None else ""
        raise UserError(f"{first_line(error)}{detail}") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(first_line(error)) from None
    except (ValueError, TypeError, AssertionError, AttributeError) as error:  # Hydra's own, of what is no name
        typed = [word for word in overrides if word != OWN_STORE]
        raise UserError(f"{' '.join(typed)}: {first_line(error)}") from None


def choices_side_by_side(groups: Mapping[str, Sequence[str]], group: str, choice: str) -> list[str]:
    """The overrides of one composition that serves a choice of every group at once: the i-th of each, where ``choice``
    is the i-th of ``group``. For groups whose files do not refer to each other: composing is what costs."""
    if choice not in groups[group]:
        return [f"{group}={choice}"]  # refused with the list of what is there
    position = list(groups[group]).index(choice)
    return [f"{name}={listed[position % len(listed)]}" for name, listed in groups.items()]


def expand_sweep(overrides: Sequence[str], conf: Path) -> list[list[str]]:
    """The override lists of a multirun: the product of every ``key=a,b``, the last one changing fastest."""
    limits.check_overrides(tuple(overrides))
    try:
        parsed = OverridesParser.create().parse_overrides(overrides=list(overrides))
        words = {
            override.get_key_element(): _values_of(override, conf) for override in parsed
        }  # of a key the last one counts
    except HydraException as error:
        raise UserError(first_line(error)) from None
    return [list(job) for job in itertools.product(*words.values())]


def parse_value(key: str, text: str) -> Json:
    """A value as Hydra's grammar reads it: 1e-3 is a number. UserError for one that it does not, and for several."""
    limits.check_overrides((f"{key}={text}",))
    try:
        (override,) = OverridesParser.create().parse_overrides(overrides=[f"key={text}"])
        if override.is_sweep_override():
            raise UserError(f"{key}: given {text}, required one value, which takes the place of the table's own grid")
        return override.value()
    except HydraException as error:
        raise UserError(first_line(error)) from None


def _values_of(override: Override, conf: Path) -> list[str]:
    value = override.value()
    if isinstance(value, Glob):
        found = value.filter(choices(conf, override.key_or_group))
        if not found:
            raise UserError(f"{override.input_line}: no choice of {override.key_or_group} is like that")
        return [f"{override.get_key_element()}={name}" for name in found]
    if not override.is_sweep_override():
        return [f"{override.get_key_element()}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line}: an interval has no list of values; give key=a,b or choice(a,b), or "
            "hydra/sweeper=optuna"
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]

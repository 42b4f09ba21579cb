"""A workspace: the checkout (conf/, data/, assets/), the store of results, and how runs are executed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nora.config.compose import OWN_STORE, compose_config
from nora.config.schema import ExecSpec, validate
from nora.errors import UserError
from nora.store.runs import Store

RESULTS = "results"
"""The committed store, below the checkout; conf/exec/local.yaml says the same."""


def find_checkout(start: Path | None = None) -> Path:
    """The folder with conf/config.yaml: that of NORA_CHECKOUT, else the working directory, one above it, or the one
    this package was installed from in place. UserError elsewhere."""
    here = (start or Path.cwd()).resolve()
    named = os.environ.get("NORA_CHECKOUT")
    places = (
        [Path(named).expanduser().resolve()] if named else [here, *here.parents, Path(__file__).resolve().parents[2]]
    )
    for folder in places:
        if (folder / "conf" / "config.yaml").is_file() and (folder / "src" / "nora").is_dir():
            return folder
    raise UserError(
        f"{f'NORA_CHECKOUT: {places[0]}' if named else here} is not inside a checkout of nora (no conf/config.yaml): "
        "this command needs one (NORA_CHECKOUT names it from elsewhere); nora.adapters works anywhere"
    )


@dataclass(frozen=True)
class Workspace:
    """Where a command works."""

    checkout: Path
    store: Store
    settings: ExecSpec
    overrides: tuple[str, ...] = ()
    """What was typed of exec: a run started from here is given it too."""

    def with_store(self, store: Store) -> Workspace:
        """The same with another store."""
        root = str(store.root)
        overrides = (*self.overrides, f"exec.results={root}")
        return replace(self, store=store, settings=replace(self.settings, results=root), overrides=overrides)


def with_own_store(words: Sequence[str]) -> tuple[str, ...]:
    """The words of ``nora run``, its records beside those of the tables unless a place is typed: a run that no table
    has must not lie among the committed ones."""
    typed = any(
        w.lstrip("+").startswith("exec.results=") or (w.startswith("exec=") and w != "exec=local") for w in words
    )
    return tuple(words) if typed else (*words, OWN_STORE)


def seen_from_here(words: Sequence[str], checkout: Path) -> tuple[str, ...]:
    """The words with a relative ``exec.results`` as the folder it is from the working directory; in the checkout it
    stays as it is typed."""
    if Path.cwd() == checkout:
        return tuple(words)
    cut = [word.partition("=") for word in words]
    here = {"exec.results", "+exec.results", "++exec.results"}
    return tuple(
        f"{key}={Path.cwd() / value}" if key in here and re.match(r"[\w.]", value) else word
        for word, (key, _, value) in zip(words, cut, strict=True)
    )


_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "none"}


def with_wandb(words: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The words with what W&B's own variables say where nothing is typed (WANDB_MODE, WANDB_PROJECT; the library reads
    WANDB_ENTITY, the tracker WANDB_DIR), and a line that says so, "" where they say nothing. A machine that is offline
    stays so whatever is typed."""
    typed = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words)}
    mode, given = os.environ.get("WANDB_MODE", ""), typed.get("exec.wandb")
    if mode and mode not in _MODES:
        raise UserError(f"WANDB_MODE: given {mode!r}, allowed {', '.join(_MODES)}")
    wins = given if given is not None and (not mode or given != "online") else _MODES.get(mode)
    said, more = [], [] if wins in (None, given) else [f"exec.wandb={wins}"]
    if mode and given is None:
        said.append(f"{wins} (WANDB_MODE)")
    elif mode and _MODES[mode] != given:
        said.append(f"exec.wandb={given} is typed, WANDB_MODE={mode} is set: {wins} it is")
    project = os.environ.get("WANDB_PROJECT")
    if project and "exec.wandb_project" not in typed:
        more.append(f"exec.wandb_project={project}")
    for what, name in {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "folder": "WANDB_DIR"}.items():
        if os.environ.get(name) and wins not in (None, "none") and f"exec.wandb_{what}" not in typed:
            said.append(f"{what} {os.environ[name]} ({name})")
    kept = [word for word in words if wins == given or not word.lstrip("+").startswith("exec.wandb=")]
    return (*kept, *more), f"W&B: {'; '.join(said)}" if said else ""


def open_workspace(words: Sequence[str] = ()) -> Workspace:
    """The workspace around the working directory, with the words that say something of exec."""
    checkout = find_checkout()
    words = with_wandb(words)[0] if {"WANDB_MODE", "WANDB_PROJECT"} & os.environ.keys() else words
    words = words if Path.cwd() == checkout else seen_from_here(words, checkout)
    overrides = tuple(word for word in words if word.startswith("exec"))
    config = compose_config(checkout / "conf", overrides)
    settings = validate(config["exec"], ExecSpec, prefix="exec.")
    return Workspace(checkout, Store(checkout / settings.results), settings, overrides)

"""A workspace: the checkout (conf/, data/, assets/), the store of results, and how runs are executed."""

from __future__ import annotations

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
    """The folder with conf/config.yaml: the working directory, one above it, or the one this package was installed
    from in place. UserError elsewhere."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "conf" / "config.yaml").is_file() and (folder / "src" / "nora").is_dir():
            return folder
    raise UserError(
        f"{here} is not inside a checkout of nora (no conf/config.yaml): this command needs one; "
        "nora.adapters and nora.factorization work anywhere"
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


def open_workspace(words: Sequence[str] = ()) -> Workspace:
    """The workspace around the working directory, with the words that say something of exec."""
    checkout = find_checkout()
    overrides = tuple(word for word in words if word.startswith("exec"))
    config = compose_config(checkout / "conf", overrides)
    settings = validate(config["exec"], ExecSpec, prefix="exec.")
    return Workspace(checkout, Store(checkout / settings.results), settings, overrides)

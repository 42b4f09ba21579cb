"""What was asked for: targets, settings, the store. Shared by the verbs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nora.errors import UserError
from nora.workspace import find_checkout

if TYPE_CHECKING:
    from nora.launch.cluster import Cluster
    from nora.store.record import Record
    from nora.store.runs import Store
    from nora.tables.target import Target


def read_targets(words: Sequence[str]) -> tuple[list[Target], dict[str, Any], list[str]]:
    """Tables, exec settings and exec overrides of ``TARGET… key=value…``."""
    from nora.tables.table import names as table_names
    from nora.tables.target import load_target

    checkout = find_checkout()
    names = [word for word in words if "=" not in word]
    if names == ["all"]:
        names = table_names(checkout)
    overrides = [word for word in words if "=" in word]
    if not names:
        raise UserError("a TARGET is required, for example table2")
    exec_overrides = [word for word in overrides if word.startswith("exec")]
    tables = [load_target(checkout, name, overrides) for name in names]
    return tables, exec_settings(exec_overrides), exec_overrides


def exec_settings(exec_overrides: Sequence[str]) -> dict[str, Any]:
    """Where and how, as plain data."""
    from dataclasses import asdict

    from nora.config.compose import compose_config
    from nora.config.schema import ExecSpec, validate

    config = compose_config(find_checkout() / "conf", exec_overrides)
    settings: ExecSpec = validate(config["exec"], ExecSpec, prefix="exec.")
    return asdict(settings)


def open_store(settings: dict[str, Any]) -> Store:
    """The store of ``exec.results``."""
    from nora.store.runs import Store

    return Store(find_checkout() / settings["results"])


def read_records(store: Store) -> dict[str, Record]:
    """Every readable record by id; the others are named on stderr."""
    records, damaged = store.read_all()
    for line in damaged:
        print(f"nora: {line}", file=sys.stderr)
    return records


def cluster_of(settings: dict[str, Any]) -> Cluster:
    """Where a launch goes to."""
    from nora.config.schema import ExecSpec
    from nora.launch.cluster import Cluster

    return Cluster(find_checkout(), open_store(settings), ExecSpec(**settings))

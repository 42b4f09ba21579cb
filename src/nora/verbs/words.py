"""What is typed after a verb: targets, what narrows them, where; what a shell may complete, and ``nora list``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
from click.shell_completion import CompletionItem

from nora import kinds
from nora.config.compose import choices, folders
from nora.errors import UserError, one_of
from nora.files import Json
from nora.store.states import Snapshot, take_snapshot
from nora.tables.cell import names
from nora.tables.target import AnyTarget, has_scale, load_targets
from nora.workspace import Workspace, find_checkout, open_workspace

_METAVAR = "TARGET… [key=value …]"
_GROUPS = ("scale", "model", "task", "method", "protocol", "exec", "kind", "experiment")
_KEYS = (
    "seed=", "method.rank=", "method.alpha=", "method.xi=", "method.side=", "method.damping=", "protocol.lr=",
    "protocol.batch_size=", "protocol.epochs=", "exec.device=", "exec.threads=", "exec.processes=", "exec.results=",
    "exec.wandb=", "search=grid", "search=chosen",
)  # fmt: skip


def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Targets, choices of the config groups and keys, as they are in the checkout now."""
    checkout = find_checkout()
    words = [*names(checkout), "all", *_KEYS]
    words += [f"{group}={choice}" for group in _GROUPS for choice in choices(checkout / "conf", group)]
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


on_targets = click.argument("words", nargs=-1, metavar=_METAVAR, shell_complete=complete, required=True)
in_store = click.argument("words", nargs=-1, metavar="[exec.results=…]")
json_flag = click.option("--json", "as_json", is_flag=True, help="machine-readable output")
dry_run_flag = click.option("--dry-run", is_flag=True, help="say what would be done, write nothing")
of_run = click.argument("identity", metavar="ID")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """On a terminal ``text`` beside something that turns, for as long as the block (an import, a plan) says nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.__stderr__)
    turning = "dots" if console.encoding.startswith("utf") else "line"
    with console.status(escape(text), spinner=turning, spinner_style="none"):
        yield


_One = TypeVar("_One")


def counted(text: str, items: Iterable[_One], total: int | None = None) -> Iterator[_One]:
    """The items one by one; on a terminal a bar beside ``text`` with the time that is left."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.__stderr__)
    yield from track(items, text, total=total, console=console, transient=True, disable=console.is_dumb_terminal)


def read_targets(words: Sequence[str], workspace: Workspace | None = None) -> tuple[list[AnyTarget], Workspace]:
    """The targets and the workspace (that of the words, where it is not open yet) of ``TARGET… key=value…``."""
    workspace = workspace or open_workspace(words)
    wanted = [word for word in words if "=" not in word]
    if wanted == ["all"]:
        scale = next((word.removeprefix("scale=") for word in words if word.startswith("scale=")), "mini")
        unknown = scale not in choices(workspace.checkout / "conf", "scale")  # is refused below, with what there is
        wanted = [n for n in names(workspace.checkout) if unknown or has_scale(workspace.checkout, n, scale)]
    if not wanted:
        raise UserError("a TARGET is required, for example table2")
    return load_targets(workspace.checkout, wanted, [word for word in words if "=" in word]), workspace


_LISTS = {
    "methods": "method",
    "tasks": "task",
    "models": "model",
    "protocols": "protocol",
    "scales": "scale",
    "tables": "table",
}


_TELLING = ("init", "variant", "optimizer", "preconditioner", "suite", "family", "repo", "epochs", "steps", "version")


def _of_group(checkout: Path, group: str) -> list[dict[str, Json]]:
    """The choices of a config group, each with the first comment of its file, or else what tells it from the others."""
    found: list[dict[str, Json]] = []
    for name in choices(checkout / "conf", group):
        paths = [folder / group / f"{name}.yaml" for folder in folders(checkout / "conf")]
        lines = next(path for path in paths if path.is_file()).read_text(encoding="utf-8").splitlines()
        notes = [line.lstrip("# ") for line in lines[:3] if line.startswith("#") and "@package" not in line]
        pairs = dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith((" ", "#", "-")))
        keys = [f"{key} {pairs[key].split('#')[0].strip()}" for key in _TELLING if key in pairs]
        found.append({"name": name, "says": notes[0] if notes else ", ".join(keys)})
    return found


def _of_store(snapshot: Snapshot, wanted: Sequence[str]) -> list[dict[str, Json]]:
    """The runs of a store whose id or title has every word that is asked for, the newest first."""
    found: list[dict[str, Json]] = []
    for line in kinds.troubles(snapshot):
        print(f"nora: {line}", file=sys.stderr)
    for record, spec in kinds.readable(snapshot.values()):
        title = kinds.title(spec)
        if all(word.lower() in f"{record.id} {record.status} {title}".lower() for word in wanted):
            said = kinds.outcome(record, spec)
            started = float(record.run.get("started", 0.0))
            found.append({"id": record.id, "state": record.status, "run": title, "says": said, "started": started})
    return sorted(found, key=lambda row: -row["started"])


def _age(started: float) -> str:
    hours = max(0.0, time.time() - started) / 3600
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


@click.command()
@click.argument("what", metavar="[methods|tasks|models|protocols|scales|tables|runs]", required=False)
@click.argument("words", nargs=-1, metavar="[WORD …] [exec.results=…]")
@json_flag
def list_(what: str | None, words: Sequence[str], as_json: bool) -> int:
    """What there is: the choices of a group, the tables, or the runs of a store; with words those that have them all.

    \b
    nora list methods pissa
    nora list runs nora_plus sst2 exec.results=mine
    """
    allowed = [*_LISTS, "runs"]
    if what is None:
        print(json.dumps(allowed) if as_json else f"nora list {'|'.join(allowed)}")
        return 0
    one_of("what", what, allowed)
    if what == "runs":
        workspace = open_workspace([word for word in words if "=" in word])
        with waiting("reading the records"):
            snapshot = take_snapshot(workspace.store)
        rows = _of_store(snapshot, [word for word in words if "=" not in word])
        lines = [f"{r['id']}  {r['state']:8} {_age(r['started']):>8}  {r['run']}: {r['says']}" for r in rows]
    else:
        checkout = find_checkout()
        wanted = [word.lower() for word in words if "=" not in word]
        there = _of_group(checkout, _LISTS[what])
        rows = [row for row in there if all(word in f"{row['name']} {row['says']}".lower() for word in wanted)]
        width = max((len(row["name"]) for row in rows), default=0)
        lines = [f"{row['name']:{width}}  {row['says']}".rstrip() for row in rows]
    print(json.dumps(rows, indent=1, ensure_ascii=False) if as_json else "\n".join(lines))
    return 0

"""What is typed after a verb: targets, what narrows them, where they are worked on; and what a shell may complete."""

from __future__ import annotations

from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from nora.config.compose import choices
from nora.errors import UserError
from nora.tables.cell import names
from nora.tables.target import AnyTarget, has_scale, load_targets
from nora.workspace import Workspace, open_workspace

_METAVAR = "TARGET… [key=value …]"
_GROUPS = ("scale", "model", "task", "method", "protocol", "exec", "kind", "experiment")
_KEYS = (
    "seed=", "method.rank=", "method.alpha=", "method.xi=", "method.side=", "method.damping=", "protocol.lr=",
    "protocol.batch_size=", "protocol.epochs=", "exec.device=", "exec.threads=", "exec.processes=", "exec.results=",
    "exec.wandb=", "search=grid", "search=chosen",
)  # fmt: skip


def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Targets, choices of the config groups and keys, as they are in the checkout now."""
    from nora.workspace import find_checkout

    checkout = find_checkout()
    words = [*names(checkout), "all", *_KEYS]
    words += [f"{group}={choice}" for group in _GROUPS for choice in choices(checkout / "conf", group)]
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


on_targets = click.argument("words", nargs=-1, metavar=_METAVAR, shell_complete=complete, required=True)
in_store = click.argument("words", nargs=-1, metavar="[exec.results=…]")
json_flag = click.option("--json", "as_json", is_flag=True, help="machine-readable output")
dry_run_flag = click.option("--dry-run", is_flag=True, help="say what would be done, write nothing")
of_run = click.argument("identity", metavar="ID")


def read_targets(words: Sequence[str]) -> tuple[list[AnyTarget], Workspace]:
    """The targets and the workspace of ``TARGET… key=value…``."""
    workspace = open_workspace(words)
    wanted = [word for word in words if "=" not in word]
    if wanted == ["all"]:
        scale = next((word.removeprefix("scale=") for word in words if word.startswith("scale=")), "mini")
        unknown = scale not in choices(workspace.checkout / "conf", "scale")  # is refused below, with what there is
        wanted = [n for n in names(workspace.checkout) if unknown or has_scale(workspace.checkout, n, scale)]
    if not wanted:
        raise UserError("a TARGET is required, for example table2")
    return load_targets(workspace.checkout, wanted, [word for word in words if "=" in word]), workspace

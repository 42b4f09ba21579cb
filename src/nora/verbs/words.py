"""What was typed after a verb: targets, what narrows them, and where they are worked on."""

from __future__ import annotations

from collections.abc import Sequence

from nora.errors import UserError
from nora.tables.cell import names
from nora.tables.target import AnyTarget, load_targets
from nora.workspace import Workspace, open_workspace


def read_targets(words: Sequence[str]) -> tuple[list[AnyTarget], Workspace]:
    """The targets and the workspace of ``TARGET… key=value…``."""
    workspace = open_workspace(words)
    wanted = [word for word in words if "=" not in word]
    if wanted == ["all"]:
        wanted = names(workspace.checkout)
    if not wanted:
        raise UserError("a TARGET is required, for example table2")
    return load_targets(workspace.checkout, wanted, [word for word in words if "=" in word]), workspace

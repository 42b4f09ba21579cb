"""The verbs that show what records say: collate. They print; the command line parses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nora.collate.artefacts import build, summary
from nora.collate.collation import collate, collate_all, up_to_date
from nora.runs.snapshot import take_snapshot
from nora.runs.store import Store
from nora.tables.table import Table
from nora.tables.targets import Target, load_target

PAPER = "scale=paper"


def collate_command(
    targets: Sequence[Target], store: Store, checkout: Path, *, everything: bool, dry_run: bool
) -> int:
    """Writes the targets' artefacts; ``everything``: at paper scale too, with results/report.html."""
    if everything:
        kept = up_to_date(store, checkout)
        if kept is not None:
            print(f"nothing to do: {kept} files are what the records give")
            return 0
        tables = [load_target(checkout, t.name, [PAPER]) for t in targets if isinstance(t, Table)]
        targets = [*targets, *(t for t in tables if t.file.layout not in _FIGURES)]
    for line in take_snapshot(store).damaged.values():
        print(f"nora: {line}", file=sys.stderr)
    if dry_run:
        snapshot = take_snapshot(store)
        for target in targets:
            print(summary(build(target, snapshot, checkout=checkout)))
        return 0
    show = collate_all if everything else collate
    for path in show(targets, store, checkout=checkout, show=print):
        print(path)
    return 0


_FIGURES = ("singular_values",)

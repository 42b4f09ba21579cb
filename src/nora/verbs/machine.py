"""run, prefetch, sync-wandb, doctor, pretrain, bench: one run, and what stands around a campaign."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence

from nora.runs.checkout import find_checkout
from nora.verbs.asked import exec_settings, open_store, read_records, read_targets


def run(arguments: Sequence[str]) -> int:
    """``nora run``: Hydra's grammar, hence not ours to parse."""
    from nora.runs.hydra_app import run as hydra_run

    checkout = find_checkout()
    if not any(word.startswith("hydra/launcher=") for word in arguments):
        return hydra_run(arguments, checkout)
    from nora.launch.multirun import place

    rest, launcher = place(arguments, checkout)
    return hydra_run(rest, checkout, launcher)


def prefetch(options: Namespace) -> int:
    from nora.runs.prefetch import prefetch
    from nora.tables.targets import target_cells

    words = (
        options.targets if any(w.startswith("scale=") for w in options.targets) else [*options.targets, "scale=paper"]
    )
    tables, _, _ = read_targets(words)
    cells = [cell for t in tables for cell in target_cells(t, {}, checkout=find_checkout())]
    lines = prefetch([c.spec for c in cells if c.spec is not None], find_checkout(), dry_run=options.dry_run)
    print("\n".join(lines) or "nothing to fetch: this target reads no Hub model or data set")
    return 0


def sync_wandb(options: Namespace) -> int:
    from nora.runs.sync import sync
    from nora.tables.targets import target_cells

    tables, settings, _ = read_targets(options.targets)
    store = open_store(settings)
    records = read_records(store)
    cells = [c for table in tables for c in target_cells(table, records, checkout=find_checkout())]
    specs = {c.id: c.spec for c in cells if c.id is not None and c.spec is not None}
    lines = sync(store, specs, project=settings["wandb_project"], dry_run=options.dry_run)
    print("\n".join(lines) or "nothing to upload")
    return 0


def doctor(options: Namespace) -> int:
    from nora.launch.doctor import examine, report

    findings = examine(find_checkout(), open_store(exec_settings(options.overrides)).root)
    print(json.dumps([vars(f) for f in findings], indent=1) if options.json else report(findings))
    return 1 if any(f.verdict == "bad" for f in findings) else 0


def pretrain(options: Namespace) -> int:
    from nora.runs.pretrain import make_base

    return make_base(options.model, corpus=options.corpus, checkout=find_checkout(), out=options.out)


def bench(options: Namespace) -> int:
    from nora.runs.bench import run_benchmark

    return run_benchmark(options.name, checkout=find_checkout(), quick=options.quick)

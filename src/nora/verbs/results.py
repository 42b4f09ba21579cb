"""collate, verify, trace, show, theory: what came out."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

from nora.runs.checkout import find_checkout
from nora.runs.errors import UserError
from nora.verbs.asked import exec_settings, open_store, read_records, read_targets


def collate(options: Namespace) -> int:
    from nora.collate.artefacts import build, summary, write

    tables, settings, _ = read_targets(options.targets)
    store = open_store(settings)
    records = read_records(store)
    for table in tables:
        artefact = build(table, records, checkout=find_checkout())
        print(summary(artefact))
        if not options.dry_run:
            for path in write(artefact, store.root):
                print(path)
    return 0


def verify(options: Namespace) -> int:
    from nora.runs.verify import verify_record
    from nora.tables.targets import target_cells

    tables, settings, _ = read_targets(options.targets)
    store = open_store(settings)
    records, problems = store.read_all()
    checked = 0
    for table in tables:
        for cell in target_cells(table, records, checkout=find_checkout()):
            record = records.get(cell.id or "")
            if record is not None:
                checked += 1
                problems += verify_record(store, record)
    if options.json:
        print(json.dumps({"checked": checked, "problems": problems}, indent=1))
    else:
        print("\n".join([*problems, f"{checked} records checked, {len(problems)} problems"]))
    return 1 if problems else 0


def trace(options: Namespace) -> int:
    from nora.collate.trace import trace, trace_text
    from nora.tables.table import Table

    tables, settings, _ = read_targets([options.target, *options.overrides])
    if not isinstance(tables[0], Table):
        raise UserError(f"TARGET: {options.target} has no METHOD/TASK cells; its CSV names the runs, see nora show")
    traced = trace(tables[0], options.cell, read_records(open_store(settings)), checkout=find_checkout())
    print(json.dumps(traced, indent=1) if options.json else trace_text(traced))
    return 0


def show(options: Namespace) -> int:
    from nora.collate.trace import show_text

    store = open_store(exec_settings(options.overrides))
    found = [record for record in store.records() if record.id.startswith(options.id)]
    if len(found) != 1:
        raise UserError(f"ID: given {options.id!r}, {len(found)} records of {store.root} start with it; required one")
    print(
        found[0].to_json() if options.json else show_text(found[0], store.run_dir(found[0].spec["kind"], found[0].id))
    )
    return 0


def theory(options: Namespace) -> int:
    import torch

    from nora.collate.artefacts import write
    from nora.collate.ledger import build, line
    from nora.factorization.theory import check_expectations, run_ledger

    torch.set_num_threads(1)
    quiet = options.json
    try:
        rows = run_ledger(
            only=options.only, progress=lambda row: None if quiet else print(line(row.as_dict()), flush=True)
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    problems = check_expectations(rows, complete=not options.only)
    if quiet:
        print(json.dumps({"rows": [row.as_dict() for row in rows], "problems": problems}, indent=1, ensure_ascii=False))
    if not options.only:
        for path in write(build([row.as_dict() for row in rows]), find_checkout() / "results"):
            print(path, file=sys.stderr)
    for problem in problems:
        print(f"nora: {problem}", file=sys.stderr)
    return 1 if problems else 0

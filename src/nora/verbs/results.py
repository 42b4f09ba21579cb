"""collate, verify, trace, show, theory: what came out."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

from nora.runs.checkout import find_checkout
from nora.runs.errors import UserError
from nora.runs.files import write_atomic
from nora.verbs.asked import exec_settings, open_store, read_records, read_targets


def collate(options: Namespace) -> int:
    from nora.collate.artefacts import build, summary
    from nora.collate.collation import collate as write_some
    from nora.collate.collation import collate_all, up_to_date, with_paper_scale
    from nora.runs.snapshot import take_snapshot

    checkout = find_checkout()
    tables, settings, _ = read_targets(options.targets)
    store = open_store(settings)
    # `collate all`, not narrowed: every artefact at both scales, and the report.
    everything = options.targets[0] == "all" and all(word.startswith("exec") for word in options.targets[1:])
    if everything:
        kept = up_to_date(store, checkout)
        if kept is not None:
            print(f"nothing to do: {kept} files are what the records give")
            return 0
        tables = with_paper_scale(tables, checkout)
    snapshot = take_snapshot(store)
    for line in snapshot.damaged.values():
        print(f"nora: {line}", file=sys.stderr)
    if options.dry_run:
        for table in tables:
            print(summary(build(table, snapshot, checkout=checkout)))
        return 0
    show = collate_all if everything else write_some
    for path in show(tables, store, checkout=checkout, show=print):
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
    from nora.collate.collation import LEDGER
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
        results = find_checkout() / "results"
        body = {"rows": [row.as_dict() for row in rows]}
        write_atomic(results / LEDGER, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        for path in write(build(body["rows"]), results):
            print(path, file=sys.stderr)
    for problem in problems:
        print(f"nora: {problem}", file=sys.stderr)
    return 1 if problems else 0

"""collate, verify, trace, show, diff, export, theory: what came out."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from typing import TYPE_CHECKING

from nora.errors import UserError
from nora.files import write_atomic
from nora.verbs.asked import exec_settings, open_store, read_targets
from nora.workspace import find_checkout

if TYPE_CHECKING:
    from nora.store.record import Record
    from nora.store.runs import Store


def collate(options: Namespace) -> int:
    from nora.reporting.collation import build_artefact, collate_all, summary, up_to_date, with_paper_scale
    from nora.reporting.collation import collate as write_some
    from nora.store.snapshot import take_snapshot

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
        if not options.dry_run:
            for path in collate_all(tables, store, checkout=checkout, show=print, warn=_warn):
                print(path)
            return 0
    snapshot = take_snapshot(store)
    for line in snapshot.damaged.values():
        _warn(line)
    if options.dry_run:
        for table in tables:
            print(summary(build_artefact(table, snapshot, checkout=checkout)))
        return 0
    for path in write_some(tables, snapshot, store.root, checkout=checkout, show=print):
        print(path)
    return 0


def _warn(line: str) -> None:
    print(f"nora: {line}", file=sys.stderr)


def verify(options: Namespace) -> int:
    from nora.reporting.collation import audit, audit_all, with_paper_scale
    from nora.store.snapshot import take_snapshot
    from nora.store.verify import verify_record
    from nora.tables.target import target_cells

    checkout = find_checkout()
    tables, settings, _ = read_targets(options.targets)
    # Files are named by target and scale: of a narrowed one they cannot be told from the whole one's.
    whole = all("=" not in word or word.startswith("exec") for word in options.targets)
    tables = with_paper_scale(tables, checkout) if whole else tables
    store = open_store(settings)
    snapshot = take_snapshot(store)
    problems = list(snapshot.damaged.values())
    checked: set[str] = set()
    for table in tables:
        for cell in target_cells(table, snapshot, checkout=checkout):
            record = snapshot.get(cell.id or "")
            if record is not None and record.id not in checked:
                checked.add(record.id)
                problems += verify_record(store, record)
        if whole and options.targets[0] != "all":
            problems += audit(table, snapshot, store.root, checkout=checkout)
    if whole and options.targets[0] == "all":
        problems += audit_all(tables, snapshot, store.root, checkout=checkout)
    if options.json:
        print(json.dumps({"checked": len(checked), "problems": problems}, indent=1))
    else:
        print("\n".join([*problems, f"{len(checked)} records checked, {len(problems)} problems"]))
    return 1 if problems else 0


def trace(options: Namespace) -> int:
    from nora.reporting.provenance import trace, trace_text
    from nora.store.snapshot import take_snapshot

    tables, settings, _ = read_targets([options.target, *options.overrides])
    if len(tables) != 1:
        raise UserError(f"TARGET: given {options.target!r}, required a single one, such as table2")
    traced = trace(tables[0], options.cell, take_snapshot(open_store(settings)), checkout=find_checkout())
    print(json.dumps(traced, indent=1) if options.json else trace_text(traced))
    return 0


def show(options: Namespace) -> int:
    from nora.reporting.provenance import show_text

    store = open_store(exec_settings(options.overrides))
    record = _one_record(store, options.id)
    print(record.to_json() if options.json else show_text(record, store.run_dir(record.spec["kind"], record.id)))
    return 0


def _one_record(store: Store, given: str) -> Record:
    """The record whose id starts so; UserError unless there is exactly one, with why one there is not believed."""
    records, damaged = store.read_all()
    found = [record for record in records.values() if record.id.startswith(given)]
    if len(found) == 1:
        return found[0]
    why = "".join(f"; {line}" for line in damaged if f"/{given}" in line)
    raise UserError(f"ID: given {given!r}, {len(found)} records of {store.root} start with it; required one{why}")


def diff(options: Namespace) -> int:
    from nora.reporting.provenance import differences, differences_text

    store = open_store(exec_settings(options.overrides))
    one, other = (_one_record(store, given) for given in (options.id, options.other))
    print(json.dumps(differences(one, other), indent=1) if options.json else differences_text(one, other))
    return 0


def export(options: Namespace) -> int:
    from nora.reporting.exports import export
    from nora.store.snapshot import take_snapshot

    store = open_store(exec_settings(options.overrides))
    snapshot = take_snapshot(store)
    for line in snapshot.damaged.values():
        _warn(line)
    files = export(snapshot, store)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out: given {options.out}, which is a file; required a folder")
    for name, data in files:
        if not options.dry_run:
            write_atomic(options.out / name, data)
    shown = Counter(name.split("/")[0] if "/" in name else name for name, _ in files)
    for name, count in shown.items():
        print(f"{options.out / name}{f' ({count} files)' if '/' not in name and count > 1 else ''}")
    return 0


def theory(options: Namespace) -> int:
    import torch

    from nora.factorization.theory import check_expectations, run_ledger
    from nora.reporting.collation import LEDGER, write_artefact
    from nora.reporting.ledger import ledger_document, ledger_line

    torch.set_num_threads(1)
    quiet = options.json
    try:
        rows = run_ledger(
            only=options.only, progress=lambda row: None if quiet else print(ledger_line(row.as_dict()), flush=True)
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
        for path in write_artefact(ledger_document(body["rows"]), results):
            print(path, file=sys.stderr)
    for problem in problems:
        print(f"nora: {problem}", file=sys.stderr)
    return 1 if problems else 0

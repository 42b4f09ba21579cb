"""collate, verify, trace, show, diff, export, theory, claims: what came out."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from nora import kinds
from nora.errors import UserError, one_of
from nora.files import Json, write_atomic
from nora.store.record import DamagedRecord, NewerRecord, Record
from nora.store.runs import Store
from nora.store.states import Snapshot, State, runs, take_snapshot
from nora.verbs.words import counted, dry_run_flag, in_store, json_flag, of_run, on_targets, read_targets, waiting
from nora.workspace import find_checkout, open_workspace


def _warn(line: str) -> None:
    print(f"nora: {line}", file=sys.stderr)


def _snapshot(store: Store) -> Snapshot:
    """The store now; records that do not count are named on stderr."""
    with waiting("reading the records"):
        snapshot = take_snapshot(store)
    for line in kinds.troubles(snapshot):
        _warn(line)
    return snapshot


def _counted(store: Store) -> Iterator[Record]:
    """The records that count, by id, one at a time; the others are named on stderr."""
    for folder, found in counted("reading the records", runs(store), len(store.run_dirs())):
        left_out = found.state in (State.DAMAGED, State.NEWER)
        line = found.reason if left_out else store.contest(folder) if found.record else ""
        if line:
            _warn(line)
        if found.record is not None:
            yield found.record


def _whole(words: Sequence[str]) -> bool:
    """Whether the targets are not narrowed: files are named by target and scale alone."""
    return all("=" not in word or word.startswith("exec") for word in words)


@click.command()
@on_targets
@dry_run_flag
def collate(words: Sequence[str], dry_run: bool) -> int:
    """Records → tables and figures under results/."""
    from nora.reporting import collation

    targets, workspace = read_targets(words)
    store, checkout = workspace.store, workspace.checkout
    if words[0] == "all" and _whole(words):
        kept = collation.up_to_date(store, checkout)
        if kept is not None:
            print(f"nothing to do: {kept} files are what the records give")
            return 0
        targets = collation.with_all_scales(targets)
        if not dry_run:
            for path in collation.collate_all(targets, store, checkout=checkout, show=print, warn=_warn):
                print(path)
            return 0
    snapshot = _snapshot(store)
    if dry_run:
        artefacts = [collation.build_artefact(target, snapshot) for target in counted("collating", targets)]
        print("\n".join(map(collation.summary, artefacts)))
        return 0
    for path in collation.collate(targets, snapshot, store.root, show=print):
        print(path)
    return 0


@click.command()
@on_targets
@json_flag
def verify(words: Sequence[str], as_json: bool) -> int:
    """Re-hash the records, re-score their predictions, compare the artefacts."""
    from nora.reporting.collation import audit, audit_all, with_all_scales
    from nora.store.verify import verify_record

    targets, workspace = read_targets(words)
    store, whole = workspace.store, _whole(words)
    targets = with_all_scales(targets) if whole else targets
    with waiting("reading the records"):
        snapshot = take_snapshot(store)
    problems = list(snapshot.troubles)
    for line in kinds.troubles(snapshot)[len(problems) :]:
        _warn(line)
    asked = (cell.id or "" for target in targets for cell in target.cells(snapshot))
    checked = [identity for identity in dict.fromkeys(asked) if identity in snapshot]
    for identity in counted("verifying the records", checked):
        problems += verify_record(store, snapshot[identity])
    if whole and words[0] == "all":
        with waiting("comparing the artefacts"):
            problems += audit_all(targets, snapshot, store.root)
    elif whole:
        for target in counted("comparing the artefacts", targets):
            problems += audit(target, snapshot, store.root)
    unhashed = sum(not snapshot[identity].run_is_hashed for identity in checked)
    if as_json:
        print(json.dumps({"checked": len(checked), "problems": problems, "run_not_hashed": unhashed}, indent=1))
    else:
        if unhashed:
            print(
                f"{unhashed} records were written before their run part (host, times, libraries; in no table's number) "
                "had a hash: its types and ranges are checked, its values are not vouched for. Nor are journals, which "
                "no table reads, and whose first line says whose they are only since then",
                file=sys.stderr,
            )
        print("\n".join([*problems, f"{len(checked)} records checked, {len(problems)} problems"]))
    return 1 if problems else 0


@click.command()
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@in_store
@dry_run_flag
def merge(folder: Path, words: Sequence[str], dry_run: bool) -> int:
    """Bring another store's records in: each verified; where two results of a run differ both are kept."""
    from nora.store.merge import merge as merge_stores
    from nora.store.merge import open_other

    own = open_workspace(words).store
    found = []
    for one in merge_stores(own, open_other(folder, own), dry_run=dry_run):
        found.append(one.what)
        if one.what != "same":
            print(one.line, flush=True)
    tally = ", ".join(f"{found.count(what)} {what}" for what in ("added", "same", "differs", "left"))
    print(f"{len(found)} records in {folder}: {tally}")
    return int("differs" in found or "left" in found)


@click.command()
@click.argument("target", metavar="TARGET")
@click.argument("cell", metavar="CELL")
@click.argument("words", nargs=-1, metavar="[key=value …]")
@json_flag
def trace(target: str, cell: str, words: Sequence[str], as_json: bool) -> int:
    """A cell's runs, seeds, settings, commit and the commands that repeat it. CELL is METHOD/TASK (nora_plus/cb), a
    panel, a curve, or a start (pissa)."""
    from nora.reporting.provenance import trace_cell, trace_text

    targets, workspace = read_targets([target, *words])
    if len(targets) != 1:
        raise UserError(f"TARGET: given {target!r}, required a single one, such as table2")
    with waiting(f"{target}: looking for the runs"):
        traced = trace_cell(targets[0], cell, take_snapshot(workspace.store))
    print(json.dumps(traced, indent=1) if as_json else trace_text(traced))
    return 0


def _one_record(store: Store, given: str) -> Record:
    """The record whose id starts so; UserError unless there is exactly one: which there are, why one there is not
    believed."""
    found: list[Record] = []
    why, unread = "", list[str]()
    store = store.home(given)
    for folder in store.run_dirs(given):
        try:
            record = store.read(folder.parent.name, folder.name)
            found += [] if record is None else [record]
        except (DamagedRecord, NewerRecord) as error:
            why += f"; {error}"
    if len(found) == 1:
        return found[0]
    named = [f"{record.id} {kinds.title(spec)}" for record, spec in kinds.readable(found[:5], unread)]
    listed = "".join(f"; {one}" for one in (*named, *unread))
    more = "; …" if len(found) > 5 else ""
    raise UserError(
        f"ID: given {given!r}, {len(found)} records of {store.root} start with it; required one{listed}{more}{why}"
    )


@click.command()
@of_run
@in_store
@json_flag
def show(identity: str, words: Sequence[str], as_json: bool) -> int:
    """One record: spec, metrics, init proof, provenance."""
    from nora.reporting.provenance import show_text

    store = open_workspace(words).store
    record = _one_record(store, identity)
    assert record.folder is not None  # it was read there
    print(record.to_json() if as_json else show_text(record, record.folder))
    return 0


@click.command()
@of_run
@click.argument("other", metavar="ID")
@in_store
@json_flag
def diff(identity: str, other: str, words: Sequence[str], as_json: bool) -> int:
    """What differs between two records: spec, metrics, files, run."""
    from nora.reporting.provenance import differences, differences_text

    store = open_workspace(words).store
    one, two = (_one_record(store, given) for given in (identity, other))
    print(json.dumps(differences(one, two), indent=1) if as_json else differences_text(one, two))
    return 0


_SURROUNDINGS = ("machine", "cpu", "device", "threads", "bank", "commit", "dirty", "python", "libraries")
"""What of a record's run part may explain a number that differs."""


@click.command()
@of_run
@in_store
def repeat(identity: str, words: Sequence[str]) -> int:
    """Make a record's run once more, in a store of its own that is left behind empty, with the record's threads: says
    identical (result, predictions, adapter, to the byte), or what differs; then the exit code is 1."""
    workspace = open_workspace(words)
    record, checkout = _one_record(workspace.store, identity), workspace.checkout
    spec = kinds.spec_of(record)
    kinds.check_ready(spec)
    kinds.check_inputs(spec, checkout)
    with waiting(f"{kinds.title(spec)}: starting"):
        from tempfile import TemporaryDirectory

        from nora.execution.execute import execute
        from nora.execution.progress import progress_bar
        from nora.execution.stops import listening
        from nora.reporting.provenance import differences, differences_text
    settings = replace(workspace.settings, wandb="none", keep_adapter=False)
    threads = record.run.get("threads")
    if isinstance(threads, int) and not any(word.startswith("exec.threads=") for word in words):
        settings = replace(settings, threads=threads)
    label = kinds.of(spec).label(spec).what
    with (
        TemporaryDirectory(prefix="nora-repeat-") as folder,
        listening() as stops,
        progress_bar(label, enabled=settings.progress) as show,
    ):
        again, _ = execute(
            spec, settings, checkout=checkout, store=Store(Path(folder)), show=show, stop_requested=stops.requested
        )
    found = differences(record, again)
    run = {k: v for k, v in found.pop("run", {}).items() if k.split(".")[0] in _SURROUNDINGS}
    if "bank" in run:
        run["bank"] = f"one of {len(record.run.get('bank') or [0])}", "alone"
    if found:
        print(differences_text(record, again, list(found)))
    print(f"{record.id}  {kinds.title(spec)}: {'differs in ' + ', '.join(found) if found else 'identical'}")
    if run:
        told = "; ".join(f"{key} {a} → {b}" for key, (a, b) in list(run.items())[:8])
        print(f"surroundings that differ: {told}{'; …' if len(run) > 8 else ''}")
    return 1 if found else 0


@click.command()
@in_store
@click.option("--out", type=click.Path(path_type=Path), default=Path("export"), help="default: export/")
@click.option("--adapter", metavar="ID", help="one run's adapter for stock PEFT or diffusers, with its card: OUT/ID/")
@click.option("--merged", is_flag=True, help="with --adapter: its base with it merged, a model alone: OUT/ID-merged/")
@click.option("--push", "repo", metavar="OWNER/NAME", help="that folder onto the Hub, into this repository")
@click.option("--private", is_flag=True, help="with --push: a repository that is made is a private one")
@dry_run_flag
def export(
    words: Sequence[str],
    out: Path,
    adapter: str | None,
    merged: bool,
    repo: str | None,
    private: bool,
    dry_run: bool,
) -> int:
    """Every record as CSV and Parquet, PEFT's comparison format, adapter cards. With --adapter ID: that run's adapter
    as stock PEFT or diffusers reads it; nothing leaves this machine without --push."""
    from nora.reporting.exports import adapter_folder, push, write_merged_folder
    from nora.reporting.exports import export as exported

    if adapter is None and (repo is not None or private or merged):
        raise UserError("--push, --private, --merged: required with --adapter ID: one adapter is pushed")
    workspace = open_workspace(words)
    store = workspace.store
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: given {out}, which is a file; required a folder")
    if adapter is not None:
        record = _one_record(store, adapter)
        assert record.folder is not None  # it was read there
        folder, files = out / record.id, adapter_folder(record, record.folder)
        if merged:
            folder, files = Path(f"{folder}-merged"), {}
            if not dry_run:
                write_merged_folder(record, store, workspace.checkout, folder)
            print(folder)
        for name, content in files.items():
            print(folder / name)
            if not dry_run:
                write_atomic(folder / name, content)
        if repo is not None:
            told = push(folder, repo, private=private, message=f"nora: run {record.id}") if not dry_run else ""
            print(told or f"{repo}: {f'{len(files)} files' if files else folder} would be pushed")
        return 0
    shown: Counter[str] = Counter()
    for name, parts in exported(_counted(store), store):
        shown[name.split("/")[0] if "/" in name else name] += 1
        if not dry_run:
            write_atomic(out / name, parts)
    for name, count in shown.items():
        print(f"{out / name}{f' ({count} files)' if '/' not in name and count > 1 else ''}")
    return 0


@click.command()
@click.argument("also", nargs=-1, metavar="[ID …]")
@json_flag
@click.option("--only", multiple=True, metavar="ID", help='for example --only "Lemma 10"; several: --only A B')
def theory(also: Sequence[str], as_json: bool, only: Sequence[str]) -> int:
    """The ledger of every theorem: checked, and compared with the committed verdicts; exit code 1 if one differs."""
    if also and not only:
        raise UserError(f"given {' '.join(also)}; to check some statements alone: --only {also[0]!r}")
    only = [*only, *also]
    import torch

    from nora.factorization.theory import check_expectations, run_ledger
    from nora.factorization.theory import claims as statements
    from nora.reporting.collation import LEDGER, write_artefact
    from nora.reporting.ledger import ledger_document, ledger_line, rows_hash

    for word in only:
        one_of("--only", word, [statement.id for statement in statements()])
    torch.set_num_threads(1)
    quiet = as_json
    rows = run_ledger(only=only, progress=lambda row: None if quiet else print(ledger_line(row.as_dict()), flush=True))
    problems = check_expectations(rows, complete=not only)
    if quiet:
        print(json.dumps({"rows": [row.as_dict() for row in rows], "problems": problems}, indent=1, ensure_ascii=False))
    if not only:
        results = find_checkout() / "results"
        body: dict[str, Json] = {"rows": [row.as_dict() for row in rows]}
        body["sha256"] = rows_hash(body["rows"])
        write_atomic(results / LEDGER, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        for path in write_artefact(ledger_document(body["rows"]), results):
            print(path, file=sys.stderr)
    for problem in problems:
        print(f"nora: {problem}", file=sys.stderr)
    return 1 if problems else 0


@click.command()
@click.argument("words", nargs=-1, metavar="[ID …] [exec.results=…]")
@json_flag
def claims(words: Sequence[str], as_json: bool) -> int:
    """The paper's sentences, each judged at every scale from the records; exit code 1 if a verdict is not the committed
    one. ID: those claims alone, with the runs behind them."""
    from nora.reporting.claims import judged as judgement
    from nora.reporting.claims.quoted import findings
    from nora.reporting.collation import write_artefact

    workspace = open_workspace([word for word in words if "=" in word])
    store, wanted = workspace.store, [word for word in words if "=" not in word]
    known = judgement.read_claims(workspace.checkout)
    for word in wanted:
        one_of("ID", word, [claim.id for claim in known])
    # All of them, whatever is shown: a verdict depends on how many are asked (Holm).
    snapshot = _snapshot(store).records_alone()
    with waiting("judging every claim"):
        found, ranks = judgement.evidence_of(workspace.checkout, snapshot, store.root)
    shown = [j for j in found if not wanted or j.claim.id in wanted]
    if as_json:
        print(json.dumps(judgement.as_json(shown), indent=1, ensure_ascii=False))
    else:
        print("\n".join(judgement.lines(shown, runs=bool(wanted))))
    if not wanted:
        for path in write_artefact(
            judgement.claims_document(found, ranks, ((store.root / "FINDINGS.md", findings(found)),)), store.root
        ):
            print(path, file=sys.stderr)
    problems = judgement.changed(shown)
    for problem in problems:
        print(f"nora: {problem}", file=sys.stderr)
    return 1 if problems else 0

"""The command line: the only reader of arguments and environment. Imports what a verb needs when it is asked for."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nora.launch.cluster import Cluster
    from nora.launch.plan import PlannedCell
    from nora.runs.record import Record
    from nora.runs.store import Store
    from nora.tables.targets import Target

_DESCRIPTION = """\
NoRA and NoRA+ (arXiv 2410.18965): from a config to a run, from runs to the paper's tables.

TARGET is a table of conf/table/, key=value narrows it (task=cb,rte method=nora seed=0 scale=mini search=chosen)
or sets a field of every run. Exit codes: 0 done, 1 the work failed, 2 the input is wrong.
"""


_TARGET_VERBS = (
    "plan", "launch", "status", "retry", "cancel", "logs", "why", "collate", "verify", "trace", "show", "prefetch",
    "sync-wandb", "doctor",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nora", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str, handler: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(handler=handler)
        return sub

    verbs.add_parser("run", help="one run, or a Hydra multirun with -m: nora run [-m] key=value …", add_help=False)
    for name, text, handler in (
        ("plan", "the cells of a target: state, reason, cost", _plan),
        ("launch", "run exactly what is missing", _launch),
        ("status", "how far a target is", _status),
        ("retry", "run or submit again what failed, however often", _launch),
        ("cancel", "take a target's runs out of SLURM", _cancel),
        ("collate", "records → tables under results/tables", _collate),
        ("verify", "re-hash the records and re-score their predictions", _verify),
    ):
        sub = verb(name, text, handler)
        sub.add_argument("targets", nargs="+", metavar="TARGET|key=value")
        if name in ("plan", "status", "verify"):
            sub.add_argument("--json", action="store_true", help="machine-readable output")
        if name == "status":
            sub.add_argument("--watch", action="store_true", help="refresh every few seconds")
        if name == "plan":
            sub.add_argument("--sbatch", action="store_true", help="print the job scripts (SLURM is not needed)")
        if name == "launch":
            sub.add_argument(
                "--canary", action="store_true", help="first one short run per resource class: memory, speed"
            )
        if name in ("launch", "retry", "cancel", "collate"):
            sub.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    sub = verb("trace", "a cell's runs, seeds, settings, commit and the commands that repeat it", _trace)
    sub.add_argument("target", metavar="TARGET")
    sub.add_argument("cell", metavar="CELL", help="METHOD/TASK, for example nora_plus/cb")
    sub.add_argument("overrides", nargs="*", metavar="key=value")
    sub.add_argument("--json", action="store_true")
    for name, text, handler in (
        ("logs", "where a run's logs are and how they end", _logs),
        ("why", "why a run is in its state: attempts, SLURM jobs, the error", _why),
    ):
        sub = verb(name, text, handler)
        sub.add_argument("id", metavar="ID")
        sub.add_argument("overrides", nargs="*", metavar="exec.results=…")
        if name == "why":
            sub.add_argument("--json", action="store_true")
    sub = verb("show", "one record: spec, metrics, init proof, provenance", _show)
    sub.add_argument("id", metavar="ID")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("overrides", nargs="*", metavar="exec.results=…")
    sub = verb("prefetch", "resolve a target's Hub names to commits, download, write conf/revisions.lock", _prefetch)
    sub.add_argument("targets", nargs="+", metavar="TARGET|key=value")
    sub.add_argument("--dry-run", action="store_true")
    sub = verb("sync-wandb", "upload a target's journals and records to W&B; twice changes nothing", _sync_wandb)
    sub.add_argument("targets", nargs="+", metavar="TARGET|key=value")
    sub.add_argument("--dry-run", action="store_true")
    sub = verb("doctor", "what this machine has: libraries, disk, Hub, SLURM, W&B", _doctor)
    sub.add_argument("overrides", nargs="*", metavar="exec.results=…")
    sub.add_argument("--json", action="store_true")
    sub = verb("pretrain", "make a small base model (of text: from a folder)", _pretrain)
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("--corpus", type=Path, metavar="FOLDER", help="for text: the folder the yaml's paths are in")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="default: assets/MODEL")
    sub = verb("theory", "the ledger of every theorem: checked, and compared with the committed verdicts", _theory)
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--only", nargs="+", default=[], metavar="ID", help='for example --only "Lemma 10"')
    sub = verb("bench", "run benchmarks/NAME.py", _bench)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--quick", action="store_true", help="small sizes")
    sub = verb("completion", "a completion script for the shell", _completion)
    sub.add_argument("shell", choices=("bash", "zsh"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from nora.runs.errors import AlreadyRunning, RunFailed, UserError

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["run"]:
            return _run(given[1:])
        if given[:1] and given[0] in _TARGET_VERBS:  # their flags take no value, so they may stand anywhere
            words = [word for word in given[1:] if not word.startswith("-")]
            given = [given[0], *(word for word in given[1:] if word.startswith("-")), *words]
        options = _parser().parse_args(given)
        handler: Callable[[argparse.Namespace], int] = options.handler
        return handler(options)
    except UserError as error:
        print(f"nora: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"nora: {error}", file=sys.stderr)
        return 1
    except AlreadyRunning as running:
        print(f"{running}; nothing to do")
        return 0
    except KeyboardInterrupt:
        print("nora: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _checkout() -> Path:
    from nora.runs.checkout import find_checkout

    return find_checkout()


def _run(arguments: list[str]) -> int:
    if arguments in (["--help"], ["-h"]):
        print(_RUN_HELP)
        return 0
    from nora.runs.hydra_app import run

    return run(arguments, _checkout())


_RUN_HELP = """\
nora run [-m] key=value …      one run; with -m a Hydra multirun over every key=a,b

  nora run method=nora task=cb seed=0
  nora run -m method=lora,nora seed=0,1
  nora run method=nora_plus method.xi=0.2 protocol.lr=1e-3 --cfg job --resolve

Groups: scale model task method protocol exec (their choices are the files of conf/GROUP/).
Often typed: method.rank method.alpha method.xi method.side method.damping protocol.lr protocol.batch_size
protocol.epochs seed exec.device exec.threads exec.results exec.wandb.
"""


def _read_targets(words: Sequence[str]) -> tuple[list[Target], dict[str, Any], list[str]]:
    """Tables, exec settings and exec overrides of ``TARGET… key=value…``."""
    from nora.runs.errors import UserError
    from nora.tables.table import names as table_names
    from nora.tables.targets import load_target

    checkout = _checkout()
    names = [word for word in words if "=" not in word]
    if names == ["all"]:
        names = table_names(checkout)
    overrides = [word for word in words if "=" in word]
    if not names:
        raise UserError("a TARGET is required, for example table2")
    exec_overrides = [word for word in overrides if word.startswith("exec")]
    tables = [load_target(checkout, name, overrides) for name in names]
    return tables, _exec_settings(checkout, exec_overrides), exec_overrides


def _exec_settings(checkout: Path, exec_overrides: Sequence[str]) -> dict[str, Any]:
    from dataclasses import asdict

    from nora.runs.compose import compose_config
    from nora.runs.schema import ExecSpec, validate

    config = compose_config(checkout / "conf", exec_overrides)
    settings: ExecSpec = validate(config["exec"], ExecSpec, prefix="exec.")
    return asdict(settings)


def _records(store: Store) -> dict[str, Record]:
    for line in store.damaged():
        print(f"nora: {line}", file=sys.stderr)
    return {record.id: record for record in store.records()}


def _planned(table: Target, store: Store) -> list[PlannedCell]:
    from nora.launch.plan import plan
    from nora.tables.targets import target_cells

    records = _records(store)
    return plan(target_cells(table, records, checkout=_checkout()), store, records)


def _store(settings: dict[str, Any]) -> Store:
    from nora.runs.store import Store

    return Store(_checkout() / settings["results"])


def _cluster(settings: dict[str, Any]) -> Cluster:
    from nora.launch.cluster import Cluster
    from nora.runs.schema import ExecSpec

    return Cluster(_checkout(), _store(settings), ExecSpec(**settings))


def _plan(options: argparse.Namespace) -> int:
    from nora.launch.commands import plan_command

    tables, settings, _ = _read_targets(options.targets)
    return plan_command(tables, _cluster(settings), as_json=options.json, sbatch=options.sbatch)


def _launch(options: argparse.Namespace) -> int:
    from nora.launch.commands import launch_command

    tables, settings, exec_overrides = _read_targets(options.targets)
    return launch_command(
        tables,
        _cluster(settings),
        exec_overrides,
        dry_run=options.dry_run,
        retry=options.verb == "retry",
        canary=options.verb == "launch" and options.canary,
    )


def _status(options: argparse.Namespace) -> int:
    from nora.launch.commands import status_command

    tables, settings, _ = _read_targets(options.targets)
    return status_command(tables, _cluster(settings), as_json=options.json, watch=options.watch)


def _cancel(options: argparse.Namespace) -> int:
    from nora.launch.commands import cancel_command

    tables, settings, _ = _read_targets(options.targets)
    return cancel_command(tables, _cluster(settings), dry_run=options.dry_run)


def _logs(options: argparse.Namespace) -> int:
    from nora.launch.commands import logs_command

    return logs_command(options.id, _cluster(_exec_settings(_checkout(), options.overrides)))


def _why(options: argparse.Namespace) -> int:
    from nora.launch.commands import why_command

    return why_command(options.id, _cluster(_exec_settings(_checkout(), options.overrides)), as_json=options.json)


def _collate(options: argparse.Namespace) -> int:
    from nora.collate.artefacts import build, summary, write

    tables, settings, _ = _read_targets(options.targets)
    store = _store(settings)
    records = _records(store)
    for table in tables:
        artefact = build(table, records, checkout=_checkout())
        print(summary(artefact))
        if not options.dry_run:
            for path in write(artefact, store.root):
                print(path)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from nora.runs.verify import verify_record

    tables, settings, _ = _read_targets(options.targets)
    store = _store(settings)
    problems = store.damaged()
    checked = 0
    records = {record.id: record for record in store.records()}
    for table in tables:
        for planned in _planned(table, store):
            record = records.get(planned.cell.id or "")
            if record is not None:
                checked += 1
                problems += verify_record(store, record)
    if options.json:
        print(json.dumps({"checked": checked, "problems": problems}, indent=1))
    else:
        print("\n".join([*problems, f"{checked} records checked, {len(problems)} problems"]))
    return 1 if problems else 0


def _trace(options: argparse.Namespace) -> int:
    from nora.collate.trace import trace, trace_text
    from nora.runs.errors import UserError
    from nora.tables.table import Table

    tables, settings, _ = _read_targets([options.target, *options.overrides])
    if not isinstance(tables[0], Table):
        raise UserError(f"TARGET: {options.target} has no METHOD/TASK cells; its CSV names the runs, see nora show")
    traced = trace(tables[0], options.cell, _records(_store(settings)), checkout=_checkout())
    print(json.dumps(traced, indent=1) if options.json else trace_text(traced))
    return 0


def _show(options: argparse.Namespace) -> int:
    from nora.collate.trace import show_text
    from nora.runs.errors import UserError

    store = _store(_exec_settings(_checkout(), options.overrides))
    found = [record for record in store.records() if record.id.startswith(options.id)]
    if len(found) != 1:
        raise UserError(f"ID: given {options.id!r}, {len(found)} records of {store.root} start with it; required one")
    print(
        found[0].to_json() if options.json else show_text(found[0], store.run_dir(found[0].spec["kind"], found[0].id))
    )
    return 0


def _prefetch(options: argparse.Namespace) -> int:
    from nora.runs.prefetch import prefetch
    from nora.tables.targets import target_cells

    words = (
        options.targets if any(w.startswith("scale=") for w in options.targets) else [*options.targets, "scale=paper"]
    )
    tables, _, _ = _read_targets(words)
    specs = [c.spec for t in tables for c in target_cells(t, {}, checkout=_checkout()) if c.spec is not None]
    lines = prefetch(specs, _checkout(), dry_run=options.dry_run)
    print("\n".join(lines) or "nothing to fetch: this target reads no Hub model or data set")
    return 0


def _sync_wandb(options: argparse.Namespace) -> int:
    from nora.runs.sync import sync
    from nora.tables.targets import target_cells

    tables, settings, _ = _read_targets(options.targets)
    store = _store(settings)
    records = _records(store)
    cells = [c for table in tables for c in target_cells(table, records, checkout=_checkout())]
    specs = {c.id: c.spec for c in cells if c.id is not None and c.spec is not None}
    lines = sync(store, specs, project=settings["wandb_project"], dry_run=options.dry_run)
    print("\n".join(lines) or "nothing to upload")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from nora.launch.doctor import examine, report

    findings = examine(_checkout(), _store(_exec_settings(_checkout(), options.overrides)).root)
    print(json.dumps([vars(f) for f in findings], indent=1) if options.json else report(findings))
    return 1 if any(f.verdict == "bad" for f in findings) else 0


def _pretrain(options: argparse.Namespace) -> int:
    from nora.runs.pretrain import make_base

    return make_base(options.model, corpus=options.corpus, checkout=_checkout(), out=options.out)


def _theory(options: argparse.Namespace) -> int:
    import torch

    from nora.collate.artefacts import write
    from nora.collate.ledger import build, line
    from nora.factorization.theory import check_expectations, run_ledger
    from nora.runs.errors import UserError

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
        for path in write(build([row.as_dict() for row in rows]), _checkout() / "results"):
            print(path, file=sys.stderr)
    for problem in problems:
        print(f"nora: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _bench(options: argparse.Namespace) -> int:
    from nora.runs.bench import run_benchmark

    return run_benchmark(options.name, checkout=_checkout(), quick=options.quick)


def _completion(options: argparse.Namespace) -> int:
    from nora.runs.completion import script

    actions = _parser()._subparsers._group_actions  # type: ignore[union-attr]
    print(script(options.shell, sorted(actions[0].choices or ()), _checkout()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

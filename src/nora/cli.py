"""The command line: the only reader of arguments and environment. Imports what a verb needs when it is asked for."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nora.verbs import campaign, machine, results

_DESCRIPTION = """\
NoRA and NoRA+ (arXiv 2410.18965): from a config to a run, from runs to the paper's tables.

TARGET is a table of conf/table/, key=value narrows it (task=cb,rte method=nora seed=0 scale=mini search=chosen)
or sets a field of every run. Exit codes: 0 done, 1 the work failed, 2 the input is wrong.
"""

_RUN_HELP = """\
nora run [-m] key=value …      one run; with -m a Hydra multirun over every key=a,b

  nora run method=nora task=cb seed=0
  nora run -m method=lora,nora seed=0,1
  nora run method=nora_plus method.xi=0.2 protocol.lr=1e-3 --cfg job --resolve

Groups: scale model task method protocol exec (their choices are the files of conf/GROUP/).
Often typed: method.rank method.alpha method.xi method.side method.damping protocol.lr protocol.batch_size
protocol.epochs seed exec.device exec.threads exec.results exec.wandb.
"""

_TARGET_VERBS = (
    "plan", "launch", "status", "retry", "cancel", "logs", "why", "collate", "verify", "trace", "show", "diff",
    "prefetch", "sync-wandb", "doctor",
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
        ("plan", "the cells of a target: state, reason, cost", campaign.plan),
        ("launch", "run exactly what is missing", campaign.launch),
        ("status", "how far a target is", campaign.status),
        ("retry", "run or submit again what failed, however often", campaign.launch),
        ("cancel", "take a target's runs out of SLURM", campaign.cancel),
        ("collate", "records → tables under results/tables", results.collate),
        ("verify", "re-hash the records, re-score their predictions, compare the artefacts", results.verify),
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
    sub = verb("trace", "a cell's runs, seeds, settings, commit and the commands that repeat it", results.trace)
    sub.add_argument("target", metavar="TARGET")
    sub.add_argument("cell", metavar="CELL", help="METHOD/TASK (nora_plus/cb); a panel, a curve; a start (pissa)")
    sub.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    sub.add_argument("--json", action="store_true")
    for name, text, handler in (
        ("logs", "where a run's logs are and how they end", campaign.logs),
        ("why", "why a run is in its state: attempts, SLURM jobs, the error", campaign.why),
    ):
        sub = verb(name, text, handler)
        sub.add_argument("id", metavar="ID")
        sub.add_argument("overrides", nargs="*", default=[], metavar="exec.results=…")
        sub.add_argument("--json", action="store_true")
    sub = verb("show", "one record: spec, metrics, init proof, provenance", results.show)
    sub.add_argument("id", metavar="ID")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("overrides", nargs="*", default=[], metavar="exec.results=…")
    sub = verb("diff", "what differs between two records: spec, metrics, files, run", results.diff)
    sub.add_argument("id", metavar="ID")
    sub.add_argument("other", metavar="ID")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("overrides", nargs="*", default=[], metavar="exec.results=…")
    sub = verb("export", "every record as CSV and Parquet, PEFT's comparison format, adapter cards", results.export)
    sub.add_argument("overrides", nargs="*", default=[], metavar="exec.results=…")
    sub.add_argument("--out", type=Path, default=Path("export"), metavar="FOLDER", help="default: export/")
    sub.add_argument("--dry-run", action="store_true", help="say what would be written")
    sub = verb(
        "prefetch", "resolve a target's Hub names to commits, download, write conf/revisions.lock", machine.prefetch
    )
    sub.add_argument("targets", nargs="+", metavar="TARGET|key=value")
    sub.add_argument("--dry-run", action="store_true")
    sub = verb("sync-wandb", "upload a target's journals and records to W&B; twice changes nothing", machine.sync_wandb)
    sub.add_argument("targets", nargs="+", metavar="TARGET|key=value")
    sub.add_argument("--dry-run", action="store_true")
    sub = verb("doctor", "what this machine has: libraries, disk, Hub, SLURM, W&B", machine.doctor)
    sub.add_argument("overrides", nargs="*", default=[], metavar="exec.results=…")
    sub.add_argument("--json", action="store_true")
    sub = verb("pretrain", "make a small base model (of text: from a folder)", machine.pretrain)
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("--corpus", type=Path, metavar="FOLDER", help="for text: the folder the yaml's paths are in")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="default: assets/MODEL")
    sub = verb(
        "theory", "the ledger of every theorem: checked, and compared with the committed verdicts", results.theory
    )
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--only", nargs="+", default=[], metavar="ID", help='for example --only "Lemma 10"')
    sub = verb("bench", "run benchmarks/NAME.py", machine.bench)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--quick", action="store_true", help="small sizes")
    sub = verb("completion", "a completion script for the shell", _completion)
    sub.add_argument("shell", choices=("bash", "zsh"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from nora.errors import AlreadyRunning, RunFailed, UserError

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["run"]:
            if given[1:] in (["--help"], ["-h"]):
                print(_RUN_HELP)
                return 0
            return machine.run(given[1:])
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


def _completion(options: argparse.Namespace) -> int:
    from nora.verbs.machine import script
    from nora.workspace import find_checkout

    actions = _parser()._subparsers._group_actions  # type: ignore[union-attr]
    print(script(options.shell, sorted(actions[0].choices or ()), find_checkout()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

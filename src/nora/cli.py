"""The command line: the only reader of arguments and environment. A verb's own imports wait until it is asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from nora import __version__
from nora.errors import AlreadyRunning, RunFailed, UserError

_RUN_HELP = """\
nora run [-m] key=value …      one run; with -m a Hydra multirun over every key=a,b

  nora run method=nora task=cb seed=0
  nora run -m method=lora,nora seed=0,1
  nora run method=nora_plus method.xi=0.2 protocol.lr=1e-3 --cfg job --resolve

Groups: scale model task method protocol exec (their choices are the files of conf/GROUP/).
Often typed: method.rank method.alpha method.xi method.side method.damping protocol.lr protocol.batch_size
protocol.epochs seed exec.device exec.threads exec.results exec.wandb.
"""
_GROUPS = ("scale", "model", "task", "method", "protocol", "exec", "kind")
_KEYS = (
    "seed=", "method.rank=", "method.alpha=", "method.xi=", "method.side=", "method.damping=", "protocol.lr=",
    "protocol.batch_size=", "protocol.epochs=", "exec.device=", "exec.threads=", "exec.processes=", "exec.results=",
    "exec.wandb=", "search=grid", "search=chosen",
)  # fmt: skip


def _complete_words(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Targets, choices of the config groups and keys, as they are in the checkout now."""
    from nora.config.compose import choices
    from nora.workspace import find_checkout

    conf = find_checkout() / "conf"
    words = [*choices(conf, "table"), "all", *_KEYS]
    words += [f"{group}={choice}" for group in _GROUPS for choice in choices(conf, group)]
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


Verb = Callable[..., int]
_targets = click.argument(
    "words", nargs=-1, metavar="TARGET… [key=value …]", shell_complete=_complete_words, required=True
)
_where = click.argument("words", nargs=-1, metavar="[exec.results=…]")
_json = click.option("--json", "as_json", is_flag=True, help="machine-readable output")
_dry_run = click.option("--dry-run", is_flag=True, help="say what would be done, write nothing")
_id = click.argument("identity", metavar="ID")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nora", message="%(prog)s %(version)s")
def nora() -> None:
    """NoRA and NoRA+ (arXiv 2410.18965): from a config to a run, from runs to the paper's tables.

    TARGET is a table of conf/table/, key=value narrows it (task=cb,rte method=nora seed=0 scale=mini search=chosen)
    or sets a field of every run. Exit codes: 0 done, 1 the work failed, 2 the input is wrong.
    """


@nora.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True}, short_help="one run, or a multirun (-m)"
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete_words)
def run(words: tuple[str, ...]) -> int:
    """One run, or a Hydra multirun with -m: nora run [-m] key=value …"""
    if words in (("--help",), ("-h",)):
        click.echo(_RUN_HELP)
        return 0
    from nora.workspace import find_checkout, with_own_store

    checkout = find_checkout()
    words = with_own_store(words)
    if any(word.startswith("-") or word.startswith("hydra") for word in words):
        from nora.verbs.run import run_by_hydra

        return run_by_hydra(words, checkout)
    from nora import kinds

    spec, settings, _ = kinds.compose_run(checkout, words)
    kinds.check_ready(spec)
    kinds.check_inputs(spec, checkout)
    from nora.execution.execute import execute
    from nora.execution.progress import progress_bar
    from nora.store.runs import Store
    from nora.verbs.run import check_place, ended, join_others

    check_place(settings)
    replicas, settings, results = join_others(spec, settings)
    store = Store(checkout / results)
    with progress_bar(kinds.of(spec).label(spec).what, enabled=settings.progress) as show:
        record, made = execute(spec, settings, checkout=checkout, store=store, show=show, replicas=replicas)
    if replicas is None or replicas.rank == 0:
        print(ended(record, made=made, folder=store.run_dir(spec.kind, record.id)), flush=True)
    return 0 if record.status == "done" else 1


@nora.command(short_help="the cells of a target: state, reason, cost")
@_targets
@_json
@click.option("--sbatch", is_flag=True, help="print the job scripts (SLURM is not needed)")
def plan(words: Sequence[str], as_json: bool, sbatch: bool) -> int:
    """The cells of a target: state, reason, cost."""
    from nora.verbs.campaign import plan

    return plan(words, as_json=as_json, sbatch=sbatch)


@nora.command(short_help="run exactly what is missing")
@_targets
@click.option("--canary", is_flag=True, help="first one short run per resource class: memory, speed")
@_dry_run
def launch(words: Sequence[str], canary: bool, dry_run: bool) -> int:
    """Run, or submit, exactly what is missing."""
    from nora.verbs.campaign import launch

    return launch(words, canary=canary, dry_run=dry_run)


@nora.command(short_help="run or submit again what failed, however often")
@_targets
@_dry_run
def retry(words: Sequence[str], dry_run: bool) -> int:
    """Run or submit again what failed, however often."""
    from nora.verbs.campaign import launch

    return launch(words, retry=True, dry_run=dry_run)


@nora.command(short_help="how far a target is")
@_targets
@_json
@click.option("--watch", is_flag=True, help="refresh every few seconds")
def status(words: Sequence[str], as_json: bool, watch: bool) -> int:
    """How far a target is."""
    from nora.verbs.campaign import status

    return status(words, as_json=as_json, watch=watch)


@nora.command(short_help="take a target's runs out of SLURM")
@_targets
@_dry_run
def cancel(words: Sequence[str], dry_run: bool) -> int:
    """Take a target's runs out of SLURM."""
    from nora.verbs.campaign import cancel

    return cancel(words, dry_run=dry_run)


@nora.command(short_help="where a run's logs are and how they end")
@_id
@_where
@_json
def logs(identity: str, words: Sequence[str], as_json: bool) -> int:
    """Where a run's logs are and how they end."""
    from nora.verbs.campaign import logs

    return logs(identity, words, as_json=as_json)


@nora.command(short_help="why a run is in its state: attempts, SLURM jobs, the error")
@_id
@_where
@_json
def why(identity: str, words: Sequence[str], as_json: bool) -> int:
    """Why a run is in its state: attempts, SLURM jobs, the error."""
    from nora.verbs.campaign import why

    return why(identity, words, as_json=as_json)


@nora.command(short_help="records → tables and figures under results/")
@_targets
@_dry_run
def collate(words: Sequence[str], dry_run: bool) -> int:
    """Records → tables and figures under results/."""
    from nora.verbs.results import collate

    return collate(words, dry_run=dry_run)


@nora.command(short_help="re-hash the records, re-score their predictions, compare the artefacts")
@_targets
@_json
def verify(words: Sequence[str], as_json: bool) -> int:
    """Re-hash the records, re-score their predictions, compare the artefacts."""
    from nora.verbs.results import verify

    return verify(words, as_json=as_json)


@nora.command(short_help="a cell's runs, seeds, settings, commit and the commands that repeat it")
@click.argument("target", metavar="TARGET")
@click.argument("cell", metavar="CELL")
@click.argument("words", nargs=-1, metavar="[key=value …]")
@_json
def trace(target: str, cell: str, words: Sequence[str], as_json: bool) -> int:
    """A cell's runs, seeds, settings, commit and the commands that repeat it. CELL is METHOD/TASK (nora_plus/cb), a
    panel, a curve, or a start (pissa)."""
    from nora.verbs.results import trace

    return trace(target, cell, words, as_json=as_json)


@nora.command(short_help="one record: spec, metrics, init proof, provenance")
@_id
@_where
@_json
def show(identity: str, words: Sequence[str], as_json: bool) -> int:
    """One record: spec, metrics, init proof, provenance."""
    from nora.verbs.results import show

    return show(identity, words, as_json=as_json)


@nora.command(short_help="what differs between two records: spec, metrics, files, run")
@_id
@click.argument("other", metavar="ID")
@_where
@_json
def diff(identity: str, other: str, words: Sequence[str], as_json: bool) -> int:
    """What differs between two records: spec, metrics, files, run."""
    from nora.verbs.results import diff

    return diff(identity, other, words, as_json=as_json)


@nora.command(short_help="every record as CSV and Parquet, PEFT's comparison format, adapter cards")
@_where
@click.option("--out", type=click.Path(path_type=Path), default=Path("export"), help="default: export/")
@_dry_run
def export(words: Sequence[str], out: Path, dry_run: bool) -> int:
    """Every record as CSV and Parquet, PEFT's comparison format, adapter cards."""
    from nora.verbs.results import export

    return export(words, out=out, dry_run=dry_run)


@nora.command(short_help="the ledger of every theorem: checked, and compared with the committed verdicts")
@click.argument("also", nargs=-1, metavar="[ID …]")
@_json
@click.option("--only", multiple=True, metavar="ID", help='for example --only "Lemma 10"; several: --only A B')
def theory(also: Sequence[str], as_json: bool, only: Sequence[str]) -> int:
    """The ledger of every theorem: checked, and compared with the committed verdicts."""
    from nora.verbs.results import theory

    if also and not only:
        raise UserError(f"given {' '.join(also)}; to check some statements alone: --only {also[0]!r}")
    return theory([*only, *also], as_json=as_json)


@nora.command(short_help="resolve a target's Hub names to commits, download, write conf/revisions.lock")
@_targets
@_dry_run
def prefetch(words: Sequence[str], dry_run: bool) -> int:
    """Resolve a target's Hub names to commits, download, write conf/revisions.lock."""
    from nora.verbs.machine import prefetch

    return prefetch(words, dry_run=dry_run)


@nora.command("sync-wandb", short_help="upload a target's journals and records to W&B; twice changes nothing")
@_targets
@_dry_run
def sync_wandb(words: Sequence[str], dry_run: bool) -> int:
    """Upload a target's journals and records to W&B; twice changes nothing."""
    from nora.verbs.machine import sync_wandb

    return sync_wandb(words, dry_run=dry_run)


@nora.command(short_help="what this machine has: libraries, disk, Hub, SLURM, W&B")
@_where
@_json
def doctor(words: Sequence[str], as_json: bool) -> int:
    """What this machine has: libraries, disk, Hub, SLURM, W&B."""
    from nora.verbs.machine import doctor

    return doctor(words, as_json=as_json)


@nora.command(short_help="make a small base model (of text: from a folder)")
@click.argument("model", metavar="MODEL")
@click.option("--corpus", type=click.Path(path_type=Path), help="for text: the folder the yaml's paths are in")
@click.option("--out", type=click.Path(path_type=Path), help="default: assets/MODEL")
def pretrain(model: str, corpus: Path | None, out: Path | None) -> int:
    """Make a small base model (of text: from a folder)."""
    from nora.verbs.machine import pretrain

    return pretrain(model, corpus=corpus, out=out)


@nora.command(short_help="run benchmarks/NAME.py")
@click.argument("name", metavar="NAME")
@click.option("--quick", is_flag=True, help="small sizes")
def bench(name: str, quick: bool) -> int:
    """Run benchmarks/NAME.py."""
    from nora.verbs.machine import bench

    return bench(name, quick=quick)


@nora.command(short_help="a completion script for the shell: source <(nora completion bash)")
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
def completion(shell: str) -> int:
    """A completion script for the shell: source <(nora completion bash)."""
    kind = get_completion_class(shell)
    assert kind is not None
    if shell == "bash":
        click.echo("COMP_WORDBREAKS=${COMP_WORDBREAKS//=}")  # task=cb is one word
    click.echo(kind(nora, {}, "nora", "_NORA_COMPLETE").source())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        code = nora.main(None if arguments is None else list(arguments), prog_name="nora", standalone_mode=False)
        return int(code or 0)
    except click.ClickException as error:
        print(f"nora: {error.format_message()}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"nora: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"nora: {error}", file=sys.stderr)
        return 1
    except AlreadyRunning as running:
        print(f"{running}; nothing to do")
        return 0
    except (KeyboardInterrupt, click.Abort):
        print("nora: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line: the only reader of arguments and environment. A verb's own imports wait until it is asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import click
from click.shell_completion import CompletionItem, get_completion_class

from nora import __version__
from nora.errors import AlreadyRunning, Interrupted, RunFailed, UserError

_RUN_HELP = """\
nora run [-m] key=value …      one run; with -m a Hydra multirun over every key=a,b

  nora run method=nora task=cb seed=0
  nora run -m method=lora,nora seed=0,1
  nora run method=nora_plus method.xi=0.2 protocol.lr=1e-3 --cfg job --resolve

Groups: scale model task method protocol exec (their choices are the files of conf/GROUP/).
Often typed: method.rank method.alpha method.xi method.side method.damping protocol.lr protocol.batch_size
protocol.epochs seed exec.device exec.threads exec.results exec.wandb.
"""
_VERBS = {
    "run": ("", "one run, or a multirun (-m)"),
    "plan": ("campaign", "the cells of a target: state, reason, cost"),
    "launch": ("campaign", "run exactly what is missing"),
    "retry": ("campaign", "run or submit again what failed, however often"),
    "status": ("campaign", "how far a target is"),
    "cancel": ("campaign", "take a target's runs out of SLURM"),
    "logs": ("campaign", "where a run's logs are and how they end"),
    "why": ("campaign", "why a run is in its state: attempts, SLURM jobs, the error"),
    "collate": ("results", "records → tables and figures under results/"),
    "verify": ("results", "re-hash the records, re-score their predictions, compare the artefacts"),
    "merge": ("results", "another store's records into this one: verified; where results differ both are kept"),
    "trace": ("results", "a cell's runs, seeds, settings, commit and the commands that repeat it"),
    "show": ("results", "one record: spec, metrics, init proof, provenance"),
    "diff": ("results", "what differs between two records: spec, metrics, files, run"),
    "export": ("results", "every record as CSV and Parquet, PEFT's comparison format, adapter cards"),
    "theory": ("results", "the ledger of every theorem: checked, and compared with the committed verdicts"),
    "claims": ("results", "every sentence of the paper that can be checked: its verdict at each scale"),
    "prefetch": ("machine", "resolve a target's Hub names to commits, download, write conf/revisions.lock"),
    "sync-wandb": ("machine", "upload a target's journals and records to W&B; twice changes nothing"),
    "doctor": ("machine", "what this machine has: libraries, disk, Hub, SLURM, W&B"),
    "pretrain": ("machine", "make a small base model (of text: from a folder)"),
    "bench": ("machine", "run benchmarks/NAME.py"),
    "completion": ("", "a completion script for the shell: source <(nora completion bash)"),
}
"""Verb → its file in nora/verbs and what the help says of it."""


class _Verbs(click.Group):
    """Imports a verb when it is asked for: the help of all of them loads none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        file, _ = _VERBS.get(cmd_name, ("", ""))
        if not file:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(f"nora.verbs.{file}"), cmd_name.replace("-", "_"))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name, help=text) for name, (_, text) in _VERBS.items() if name.startswith(incomplete)]


def _complete_words(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from nora.verbs.words import complete

    return complete(ctx, parameter, incomplete)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nora", message="%(prog)s %(version)s")
def nora() -> None:
    """NoRA and NoRA+ (arXiv 2410.18965): from a config to a run, from runs to the paper's tables.

    TARGET is a table of conf/table/, key=value narrows it (task=cb,rte method=nora seed=0 scale=mini search=chosen)
    or sets a field of every run. Exit codes: 0 done, 1 the work failed, 2 the input is wrong.
    """


@nora.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
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
    from nora.execution.stops import listening
    from nora.store.runs import Store
    from nora.verbs.run import check_place, ended, join_others

    check_place(settings)
    replicas, settings, results = join_others(spec, settings)
    store = Store(checkout / results)
    with listening() as stops, progress_bar(kinds.of(spec).label(spec).what, enabled=settings.progress) as show:
        record, made = execute(
            spec, settings, checkout=checkout, store=store, show=show, replicas=replicas,
            stop_requested=stops.requested,
        )  # fmt: skip
    if replicas is None or replicas.rank == 0:
        print(ended(record, made=made, folder=store.run_dir(spec.kind, record.id)), flush=True)
    return 0 if record.status == "done" else 1


@nora.command()
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
def completion(shell: str) -> int:
    """A completion script for the shell: source <(nora completion bash)."""
    kind = get_completion_class(shell)
    assert kind is not None
    if shell == "bash":
        click.echo("COMP_WORDBREAKS=${COMP_WORDBREAKS//=}")  # task=cb is one word
    click.echo(kind(nora, {}, "nora", "_NORA_COMPLETE").source())
    return 0


def _say(line: str) -> None:
    """To a terminal that may be gone."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


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
    except PermissionError as error:
        from nora.store.runs import refusal

        print(f"nora: {refusal(error)}", file=sys.stderr)
        return 1
    except AlreadyRunning as running:
        print(f"{running}; nothing to do")
        return 0
    except Interrupted as stopped:
        _say(f"nora: {stopped}; the same command goes on from there")
        return 130
    except (KeyboardInterrupt, click.Abort):
        _say("nora: interrupted; what was finished is kept")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())

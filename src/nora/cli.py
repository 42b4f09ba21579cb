"""The command line: the only reader of arguments and environment. A verb's own imports wait until it is asked for."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO, cast

import click
from click.shell_completion import CompletionItem, get_completion_class

from nora import __version__, starts
from nora.errors import AlreadyRunning, Interrupted, ProcessLost, RunFailed, UserError, not_installed, one_of

_RUN_HELP = """\
nora run [-m] key=value …      one run; with -m a Hydra multirun over every key=a,b

  nora run method=nora task=cb seed=0
  nora run -m method=lora,nora seed=0,1
  nora run method=nora_plus method.xi=0.2 protocol.lr=1e-3 --cfg job --resolve
  nora run model=auto model.repo=FOLDER task=choice task.file=my.jsonl 'task.prompt="{text}\\nIt was"'

With --config-dir FOLDER (of any verb) its method/mine.yaml, table/mine.yaml, … and inits/mine.py count too.
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
    "repeat": ("results", "make a record's run again elsewhere: identical, or what differs"),
    "export": ("results", "records as CSV, Parquet, PEFT's comparison format; one adapter for stock PEFT, or the Hub"),
    "theory": ("results", "the ledger of every theorem: checked, and compared with the committed verdicts"),
    "claims": ("results", "every sentence of the paper that can be checked: its verdict at each scale"),
    "prefetch": ("machine", "resolve a target's Hub names to commits, download, write conf/revisions.lock"),
    "sync-wandb": ("machine", "upload a target's journals and records to W&B; twice changes nothing"),
    "doctor": ("machine", "what this machine has: libraries, disk, Hub, SLURM, W&B"),
    "pretrain": ("machine", "make a small base model (of text: from a folder)"),
    "bench": ("machine", "run benchmarks/NAME.py"),
    "model": ("own", "a model of your own under a name: nora model add NAME PATH"),
    "task": ("own", "what a task's rows are to the model: nora task show NAME -n 3"),
    "list": ("words", "methods, tasks, models, tables, … there are; the runs of a store"),
    "help": ("", "all commands, or one of them"),
    "completion": ("", "a completion script for the shell: source <(nora completion bash)"),
}
"""Verb → its file in nora/verbs and what the help says of it."""
_EXAMPLES = {
    "plan": "table2 task=cb,rte scale=paper",
    "launch": "table2 task=cb exec.processes=2",
    "retry": "table2",
    "status": "table2 --watch",
    "cancel": "table2 exec=slurm scale=paper",
    "logs": "6d26a3ba",
    "why": "6d26a3ba",
    "collate": "all",
    "verify": "table2",
    "merge": "../colleague/results --dry-run",
    "trace": "table2 NoRA+/CB",
    "show": "6d26a3ba",
    "diff": "6d26a3ba 8d460c7d",
    "repeat": "6d26a3ba",
    "export": "--out export",
    "prefetch": "table2 scale=paper",
    "sync-wandb": "table2 scale=paper",
    "doctor": "table2 scale=paper",
    "pretrain": "opt_mini",
    "bench": "step --quick",
    "model": "add my_model ~/models/my_model",
    "task": "show cb -n 1 model=opt_mini",
    "list": "runs nora_plus sst2",
    "claims": "few-shot-pissa",
    "help": "plan",
}
"""Words after a verb that do something; an id may be any beginning of one that no other has."""


def _read_enough() -> int:
    """After `| head`: what is still in the buffer goes nowhere, or the interpreter would end with its own error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 0


_TARGETS = """

TARGET: table1 … table9, fig1 … fig7, deployment, cost, tuning, ablation, curves, ranks, forgetting,
forgetting_pictures, likelihood, beyond, starts, starts_pictures, starts_rates, all; and the tables of
your own --config-dir."""


class _Verbs(click.Group):
    """Imports a verb when it is asked for: the help of all of them loads none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            one_of("COMMAND", cmd_name, list(_VERBS))
        file, _ = _VERBS[cmd_name]
        name = {"list": "list_"}.get(cmd_name, cmd_name.replace("-", "_"))
        found = getattr(import_module(f"nora.verbs.{file}"), name) if file else super().get_command(ctx, cmd_name)
        assert isinstance(found, click.Command)
        if cmd_name in _EXAMPLES:
            targets = any(p.metavar == "TARGET… [key=value …]" for p in found.params)
            found.epilog = f"Example: nora {cmd_name} {_EXAMPLES[cmd_name]}" + (_TARGETS if targets else "")
            if isinstance(found, click.Group):  # model add, task show
                found.commands[_EXAMPLES[cmd_name].split()[0]].epilog = found.epilog
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name, help=text) for name, (_, text) in _VERBS.items() if name.startswith(incomplete)]


def _complete_words(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from nora.verbs.words import complete

    return complete(ctx, parameter, incomplete)


_FIRST = """\
What one does first:

  nora list methods                       the starts, variants and optimisers there are (also: tasks models tables runs)
  nora run method=nora task=cb seed=0     one run, on this machine, in a minute
  nora plan table2                        what a table needs: states, hours, memory
  nora launch table2                      exactly what is missing of it
  nora collate table2                     its records → the table

nora help: every command; nora COMMAND --help: one of them."""


@click.group(
    cls=_Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="nora", message="%(prog)s %(version)s")
@click.pass_context
def nora(ctx: click.Context) -> None:
    """NoRA and NoRA+ (arXiv 2410.18965): from a config to a run, from runs to the paper's tables.

    TARGET is a table of conf/table/, key=value narrows it (task=cb,rte method=nora seed=0 scale=mini search=chosen)
    or sets a field of every run. Exit codes: 0 done, 1 the work failed, 2 the input is wrong.
    """
    if ctx.invoked_subcommand is None:
        click.echo(_FIRST)


@nora.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete_words)
def run(words: tuple[str, ...]) -> int:
    """One run, or a Hydra multirun with -m: nora run [-m] key=value …"""
    if {"--help", "-h"} & set(words):
        click.echo(_RUN_HELP)
        return 0
    from nora.workspace import find_checkout, seen_from_here, with_own_store, with_wandb

    checkout = find_checkout()
    words, told = with_wandb(with_own_store(seen_from_here(words, checkout)))
    if told:
        _say(told)
    if any(word.startswith("-") or word.startswith("hydra") for word in words):
        from nora.verbs.run import run_by_hydra

        return run_by_hydra(words, checkout)
    from nora import kinds

    spec, settings, _ = kinds.compose_run(checkout, words)
    kinds.check_ready(spec)
    kinds.check_inputs(spec, checkout)
    _tell_what_was_found(words, spec, checkout)
    from nora.verbs.words import waiting

    with waiting(f"{kinds.title(spec)}: starting"):
        from nora.execution.execute import execute
        from nora.execution.progress import progress_bar
        from nora.execution.stops import listening
        from nora.store.runs import Store
        from nora.verbs.run import check_place, ended, join_others

    check_place(settings)
    replicas, settings, results = join_others(spec, settings)
    store = Store(checkout / results)
    with listening() as stops, progress_bar(kinds.of(spec).label(spec).what, enabled=settings.progress) as show:
        try:
            record, made = execute(
                spec, settings, checkout=checkout, store=store, show=show, replicas=replicas,
                stop_requested=stops.requested,
            )  # fmt: skip
        except ProcessLost:
            if replicas is not None and replicas.rank:
                return 1  # the first process says it
            raise
    if replicas is None or replicas.rank == 0:
        print(ended(record, made=made, folder=store.run_dir(spec.kind, record.id)), flush=True)
    return 0 if record.status == "done" else 1


def _tell_what_was_found(words: Sequence[str], spec: Any, checkout: Path) -> None:
    """Of a model of one's own what its config and tokenizer say, of pictures of one's own what they are called."""
    if "model=auto" in words:
        from nora.config.compose import compose_config
        from nora.config.own_model import found

        _say(found(compose_config(checkout / "conf", words)["model"], checkout)[1])
    if getattr(getattr(spec, "task", None), "source", "") == "folder":
        task = spec.task
        _say(
            f"{len(task.files)} pictures of {task.folder}: subject {task.subject!r} (task.subject), {task.noun} "
            f"(task.noun); trained as {task.instance_prompt!r}, drawn as {task.prompt!r}"
        )


@nora.command(name="help")
@click.argument("command", required=False)
@click.pass_context
def help_(ctx: click.Context, command: str | None) -> int:
    """All commands, or one of them: nora help [COMMAND]."""
    top = ctx.find_root()
    found = nora if command is None else nora.get_command(top, command)
    assert found is not None
    if command == "run":
        click.echo(_RUN_HELP)
    else:
        click.echo(found.get_help(top if command is None else click.Context(found, info_name=command, parent=top)))
    return 0


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


_FOLDER = frozenset(("--config-dir", "-cd"))


def _take_folder(arguments: Sequence[str]) -> list[str]:
    """The words without ``--config-dir FOLDER``, which every verb takes: it is handed on by the environment, so that
    the processes of a launch have it too. UserError for a folder that is not there."""
    rest, given = [], None
    words = iter(arguments)
    for word in words:
        if word in _FOLDER:
            given = next(words, "")
        elif word.startswith("--config-dir="):
            given = word.removeprefix("--config-dir=")
        else:
            rest.append(word)
    if given is not None:
        folder = Path(given).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir: given {given!r}, required a folder (method/mine.yaml, inits/mine.py)")
        os.environ[starts.FOLDER] = str(folder)
    return rest


_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves the cursor, names the window or turns the reading direction, and what is no character."""


@dataclass(frozen=True)
class _Plain:
    """A text stream on which what ``_UNSEEN`` finds is spelt: names and texts of records are somebody else's."""

    _stream: TextIO

    def write(self, text: str) -> int:
        return self._stream.write(_UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text))

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal of few letters gets a code for the others, and no traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out, err = cast(TextIO, _Plain(sys.stdout)), cast(TextIO, _Plain(sys.stderr))
    words, before = list(sys.argv[1:] if arguments is None else arguments), os.environ.get(starts.FOLDER)
    with redirect_stdout(out), redirect_stderr(err):
        warnings = logging.StreamHandler(sys.stderr)
        warnings.setLevel(logging.WARNING)  # of its own: what Hydra's --info lets through is printed by Hydra
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[warnings])
        try:
            if not _FOLDER.isdisjoint(word.split("=")[0] for word in words):
                words = _take_folder(words)
            code = nora.main(words, prog_name="nora", standalone_mode=False)
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
        except ModuleNotFoundError as error:
            print(not_installed(error), file=sys.stderr)
            return 2
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
            return _read_enough()
        except SystemExit:
            if sys.stdout is out:
                raise
            return _read_enough()  # click has put another in its place: its own answer to a broken pipe is exit code 1
        except OSError as error:  # no file descriptor left, a read-only file system, a disk that fails
            where = f"{error.filename}: " if error.filename is not None else ""
            code_name = errno.errorcode.get(error.errno or 0, type(error).__name__)
            _say(f"nora: {where}{error.strerror or error} ({code_name})")
            return 1
        finally:
            os.environ.pop(starts.FOLDER, None)
            if before is not None:
                os.environ[starts.FOLDER] = before


if __name__ == "__main__":
    sys.exit(main())

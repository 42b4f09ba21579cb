"""``nora run`` beyond a single run: Hydra's multiruns and its own flags; a run that several processes share."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nora import kinds
from nora.config.compose import expand_sweep, first_line, permit_new_keys, search_path
from nora.config.pins import Pins
from nora.config.schema import ExecSpec, validate
from nora.config.spec import run_id
from nora.errors import AlreadyRunning, Interrupted, RunFailed, UserError, one_of
from nora.execution.stops import listening
from nora.files import Json
from nora.kinds import InstructSpec, Spec
from nora.store.attempt import Job
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import State, run_state
from nora.workspace import find_checkout

if TYPE_CHECKING:
    from nora.training.replicas import Replicas

_FLAGS_WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info",
    "-i",
)  # fmt: skip
_FLAGS = (
    *_FLAGS_WITH_VALUE, "-m", "--multirun", "-r", "--run", "--resolve", "-h", "--help", "--hydra-help", "--version",
    "--shell-completion", "-sc", "--experimental-rerun",
)  # fmt: skip
_SHOWN = {
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
}
"""What some of them take; argparse answers a slip with its usage, of ten lines."""


def ended(record: Record, *, made: bool, folder: Path) -> str:
    """One line that says how a run ended."""
    spec = kinds.spec_of(record)
    proof = "init proved" if record.result["proof"]["passed"] else "INIT NOT PROVED"
    again = "" if made else "; already done, nothing to do"
    return f"{record.id}  {kinds.title(spec)}: {kinds.outcome(record, spec)}; {proof}{again}  [{folder}]"


def check_place(settings: ExecSpec) -> None:
    """UserError for a run that is to be submitted: that is what ``nora launch`` is for."""
    if settings.name != "local":
        raise UserError(
            f"exec={settings.name}: `nora run` runs here; `nora launch TARGET exec={settings.name}` submits"
        )


def join_others(spec: Spec, settings: ExecSpec) -> tuple[Replicas | None, ExecSpec, str]:
    """This process's place among those that share the run, its settings and its results folder.

    The first process publishes; the others are silent and keep what they write to themselves. UserError if it was not
    started beside others, or the run knows no such thing.
    """
    if not settings.data_parallel:
        return None, settings, settings.results
    from nora.execution.execute import choose_device
    from nora.training.replicas import join_replicas

    if not isinstance(spec, InstructSpec):
        raise UserError("exec.data_parallel: allowed for the instruct protocols alone (Tables 4 and 9)")
    replicas = join_replicas(cpu=choose_device(settings).type == "cpu")
    if replicas.size < 2:
        raise UserError(
            "exec.data_parallel: required to be started by `accelerate launch --num_processes N -m nora run …`, "
            "on a CPU by `torchrun --nproc_per_node N -m nora run …`"
        )
    if replicas.rank == 0:
        return replicas, settings, settings.results
    return replicas, replace(settings, progress=False, wandb="none"), tempfile.mkdtemp(prefix="nora-replica-")


def job(config: DictConfig) -> Record:
    """The run of a config that Hydra composed, on this machine or wherever its launcher put it."""
    from nora.execution.execute import execute
    from nora.execution.progress import progress_bar

    plain: dict[str, Json] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    checkout = find_checkout()
    spec = kinds.build_spec(plain, Pins(checkout))
    settings = validate(plain["exec"], ExecSpec, prefix="exec.")
    check_place(settings)
    slurm_job = _slurm_job()
    store = Store(checkout / settings.results)
    bar = settings.progress and slurm_job is None
    with listening() as stops, progress_bar(kinds.of(spec).label(spec).what, enabled=bar) as show:
        if stops.requested():
            raise KeyboardInterrupt
        record, made = execute(
            spec, settings, checkout=checkout, store=store, show=show, job=slurm_job, stop_requested=stops.requested
        )
    print(ended(record, made=made, folder=store.run_dir(spec.kind, record.id)), flush=True)
    if record.status != "done":
        raise RunFailed(f"run {record.id} {record.status}")
    return record


def trial(config: DictConfig) -> float:
    """One job of a sweeper that looks for the best one (Optuna's): what it makes small, the dev loss of the epoch that
    is kept, of pictures the loss of the last hundred steps. A run that diverged is infinitely bad."""
    try:
        metrics = job(config).metrics
    except RunFailed as error:
        if not str(error).endswith(" diverged"):
            raise
        return math.inf
    return float(metrics["dev"]["loss"] if "dev" in metrics else metrics["loss"]["last_100"])


def job_of_many(config: DictConfig) -> None:
    """One job of a multirun: says what went wrong with it and leaves the others to be run; an order to stop is for all
    of them. (Hydra would raise the first error alone, and only when all have ended.)"""
    try:
        job(config)
    except Interrupted as stopped:
        print(f"nora: {stopped}", file=sys.stderr, flush=True)
        raise KeyboardInterrupt from None  # Hydra goes on to the next job after any other
    except AlreadyRunning as running:
        print(f"{running}; nothing to do", flush=True)
    except (RunFailed, UserError) as error:
        print(f"nora: {error}", file=sys.stderr, flush=True)


def _slurm_job() -> Job | None:
    """The SLURM job that Hydra's launcher put this into: earlier starts of it are dead, whatever their heartbeat."""
    from nora.launch.slurm import this_job

    own = HydraConfig.get()
    return this_job(str(own.job.id)) if own.runtime.choices.get("hydra/launcher") == "submitit_slurm" else None


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags (with their values) and overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.startswith("-"):
            flags.append(argument)
            if argument in _FLAGS_WITH_VALUE and rest and "=" not in rest[0]:
                flags.append(rest.pop(0))
        else:
            overrides.append(argument)
    return flags, overrides


def _set_launcher(name: str, settings: dict[str, Json]) -> None:
    """Gives a submitit launcher other defaults; what is typed as hydra.launcher.… still wins."""
    try:
        from hydra_plugins.hydra_submitit_launcher import config as plugin
    except ImportError:
        raise UserError(f"hydra/launcher={name}: hydra-submitit-launcher is not installed") from None
    Plugins.instance()  # the plugin's own defaults are there before they are replaced
    queues = {"submitit_slurm": plugin.SlurmQueueConf, "submitit_local": plugin.LocalQueueConf}
    node = queues[name](**settings)
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="nora")


@contextmanager
def _as_hydra_reads(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra's one public door for its launchers and flags, ``hydra.main``, reads the process's own arguments."""
    given, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["nora run", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it would print the error of a job with its traceback and exit itself
    try:
        yield
    finally:
        sys.argv = given
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]


def _sweep_folder(overrides: Sequence[str]) -> list[str]:
    """Where Hydra and its launchers keep notes of a multirun: another place than conf/ says where none can be made
    here (a working directory that is read-only)."""
    if any(word.startswith("hydra.sweep.dir=") for word in overrides):
        return []
    try:
        Path(".nora/multirun").mkdir(parents=True, exist_ok=True)
    except OSError:
        return [f"hydra.sweep.dir={tempfile.mkdtemp(prefix='nora-multirun-')}"]
    return []


def tell(jobs: Sequence[tuple[Spec, Store]]) -> int:
    """Prints a line for each job of a multirun with the state it is in now; 1 unless all are done, or running in
    another process."""
    states = []
    for number, (spec, store) in enumerate(jobs):
        found = run_state(store, spec.kind, run_id(spec))
        states.append(found.state)
        said = found.reason or (kinds.outcome(found.record, spec) if found.record else "")
        why = f": {said}" if said else ""
        print(f"#{number} {found.state:8} {run_id(spec)}  {kinds.title(spec)}{why}")
    tally = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{len(jobs)} jobs: {tally}", flush=True)
    return int(any(state not in (State.DONE, State.RUNNING) for state in states))


def run_by_hydra(words: Sequence[str], checkout: Path) -> int:
    """The exit code of ``nora run WORDS`` with flags; UserError for wrong input, RunFailed for failed work."""
    from nora.launch.profile import place

    words, launcher = place(words, checkout)
    flags, overrides = _split(words)
    for flag, following in zip(flags, [*flags, ""][1:], strict=True):
        name, joined, value = flag.partition("=")
        if flag.startswith("-"):
            one_of("flag", name, _FLAGS)
        if name in _SHOWN and (value or following and not following.startswith("-")):
            one_of(name, value if joined else following, _SHOWN[name])
    multirun = {"-m", "--multirun"} & set(flags)
    shows = {"--cfg", "-c", "--info", "-i"} & {flag.split("=")[0] for flag in flags}
    if shows and multirun:
        raise UserError(f"{', '.join(sorted(shows))}: given with -m; required without it: it shows one run's config")
    own = [o for o in overrides if not o.lstrip("+~").startswith("hydra")]
    for group, _, value in (o.partition("=") for o in overrides if o not in own):
        if "/" in group and re.search(r"[\[{$]", value):
            raise UserError(f"{group.lstrip('+~')}: given {value!r}, required the name of one choice of Hydra's")
    jobs: list[tuple[Spec, Store]] = []
    sweepers = [o.partition("=")[2] for o in overrides if o.startswith("hydra/sweeper=") and not o.endswith("=basic")]
    if multirun and sweepers:
        return _searched(sweepers[-1], own, overrides, flags, checkout)
    if multirun:
        for words in expand_sweep(own, checkout / "conf"):  # all are right before the first one starts
            spec, settings, _ = kinds.compose_run(checkout, words)
            check_place(settings)
            kinds.check_ready(spec)
            kinds.check_inputs(spec, checkout)
            jobs.append((spec, Store(checkout / settings.results)))
        specs = [spec for spec, _ in jobs]
        print(f"{len(jobs)} jobs, {len({run_id(spec) for spec in specs})} different runs", flush=True)
        if launcher is not None:
            _set_launcher(*launcher(specs))
    elif not {"--help", "-h", "--hydra-help", "--version"} & set(flags):
        kinds.compose_run(checkout, own)
    with listening():
        try:
            _hand_over(job_of_many if multirun else job, [*overrides, *_sweep_folder(overrides)], flags, checkout)
        except KeyboardInterrupt:
            if multirun:
                tell(jobs)
            raise
        except Exception as error:
            if not multirun or isinstance(error, UserError):
                raise
            # a launcher's: a job it lost, a scheduler that refused; the other jobs are what their states say
            print(f"nora: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)
            tell(jobs)
            return 1
    return tell(jobs) if multirun else 0


def _hand_over(
    task: Callable[[DictConfig], object], overrides: Sequence[str], flags: Sequence[str], checkout: Path
) -> None:
    """Lets Hydra compose and call ``task``; UserError for what it refuses. Overrides stand together there, wherever
    flags do."""
    with _as_hydra_reads([*permit_new_keys(checkout / "conf", overrides), *search_path(), *flags]):
        try:
            hydra.main(config_path=str(checkout / "conf"), config_name="config", version_base="1.3")(task)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(first_line(error)) from None


def _searched(sweeper: str, own: Sequence[str], overrides: Sequence[str], flags: Sequence[str], checkout: Path) -> int:
    """A multirun whose values are the sweeper's to choose: what is fixed is checked first, the best is said last."""
    if sweeper not in {name.removesuffix(".yaml") for name in _hydra_choices("hydra/sweeper")}:
        raise UserError(f"hydra/sweeper={sweeper}: not installed; Optuna's is pip install hydra-optuna-sweeper")
    if sweeper == "optuna":
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # every trial is said by its own line
    parsed = OverridesParser.create().parse_overrides(overrides=list(own))
    fixed = [word for word, one in zip(own, parsed, strict=True) if not one.is_sweep_override()]
    spec, settings, _ = kinds.compose_run(checkout, fixed)
    check_place(settings)
    kinds.check_ready(spec)
    kinds.check_inputs(spec, checkout)
    typed = [o.partition("=")[2] for o in overrides if o.startswith("hydra.sweep.dir=")]
    with tempfile.TemporaryDirectory(prefix="nora-multirun-") as made, listening():
        folder = typed[-1] if typed else made
        _hand_over(trial, [*overrides, *([] if typed else [f"hydra.sweep.dir={made}"])], flags, checkout)
        found = OmegaConf.to_container(OmegaConf.load(Path(folder) / "optimization_results.yaml"))
    assert isinstance(found, dict)
    best = " ".join(f"{str(key).lstrip('+')}={value}" for key, value in found.get("best_params", {}).items())
    print(f"best: {found.get('best_value'):.6g} with {best}" if best else f"best: {found}", flush=True)
    return 0


def _hydra_choices(group: str) -> list[str]:
    """What is installed of one of Hydra's own groups."""
    Plugins.instance()
    return [str(name) for name in ConfigStore.instance().list(group)]

"""``nora run``: one run through the compose API, or Hydra itself for multiruns and its own flags."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nora.config.compose import expand_sweep, first_line
from nora.config.schema import ExecSpec, FinetuneSpec, InstructProtocol, Spec, validate
from nora.config.spec import Pins, build_spec, check_inputs, check_ready, compose_run, describe, run_id, spec_dict
from nora.errors import RunFailed, UserError
from nora.store.record import Record

if TYPE_CHECKING:
    from nora.launch.profile import Launcher
    from nora.training.replicas import Replicas


def headline(record: Record, *, made: bool, folder: Path) -> str:
    """One line that says how a run ended."""
    spec, metrics = record.spec, record.metrics
    words = describe(spec)
    name = f"{record.id}  {words['what']} on {words['on']}, seed {spec['seed']}"
    if record.status == "diverged":
        outcome = f"diverged at step {record.result['diverged']['step']} ({record.result['diverged']['tensor']})"
    elif spec["kind"] == "factorize":
        final = ", ".join(f"{key} {value:.4g}" for key, value in metrics["final"].items())
        outcome = f"{metrics['stop']} after {metrics['iterations']} iterations, {final}"
    elif spec["kind"] == "deployment":
        loaded = {host: metrics[host]["portable"]["alone"] for host in ("text", "diffusion")}
        outcome = ", ".join(f"{host} output off by {value:.1e} after loading" for host, value in loaded.items())
    elif spec["kind"] == "dreambooth":
        loss = metrics["loss"]
        outcome = f"mean loss {loss['mean']:.4f} of {metrics['steps']} steps, {loss['last_100']:.4f} of the last 100"
    else:
        test = metrics["test"]
        outcome = (
            ", ".join(f"{key} {value:.4g}" for key, value in test.items() if key not in ("n", "sets"))
            + f" on {test['n']} test rows"
        )
    proof = "init proved" if record.result["proof"]["passed"] else "INIT NOT PROVED"
    return f"{name}: {outcome}; {proof}{'' if made else '; already done, nothing to do'}  [{folder}]"


def run_once(spec: Spec, settings: ExecSpec, checkout: Path, *, slurm_job: str | None = None) -> Record:
    """Executes one run with a progress bar and prints its headline."""
    from nora.execution.execute import execute
    from nora.execution.progress import progress_bar
    from nora.store.runs import Store

    if settings.name != "local":
        raise UserError(
            f"exec={settings.name}: `nora run` runs here; `nora launch TARGET exec={settings.name}` submits"
        )
    replicas = _replicas(spec, settings) if settings.data_parallel else None
    if replicas is not None and replicas.rank > 0:  # it helps the first process, which alone publishes
        with tempfile.TemporaryDirectory() as folder:
            silent = replace(settings, progress=False, wandb="none")
            return execute(spec, silent, checkout=checkout, store=Store(Path(folder)), replicas=replicas)[0]
    store = Store(checkout / settings.results)
    label = describe(spec_dict(spec))["what"]
    with progress_bar(label, enabled=settings.progress) as show:
        record, made = execute(
            spec,
            settings,
            checkout=checkout,
            store=store,
            show=show,  # type: ignore[arg-type]
            job=slurm_job,
            replicas=replicas,
        )
    print(headline(record, made=made, folder=store.run_dir(spec.kind, record.id)), flush=True)
    return record


def _replicas(spec: Spec, settings: ExecSpec) -> Replicas:
    """This process's place; UserError where it was not started beside others, or the run knows no such thing."""
    from nora.execution.execute import choose_device
    from nora.training.replicas import join_replicas

    if not isinstance(spec, FinetuneSpec) or not isinstance(spec.protocol, InstructProtocol):
        raise UserError("exec.data_parallel: allowed for the instruct protocols alone (Tables 4 and 9)")
    replicas = join_replicas(cpu=choose_device(settings).type == "cpu")
    if replicas.size < 2:
        raise UserError(
            "exec.data_parallel: required to be started by `accelerate launch --num_processes N -m nora run …`, "
            "on a CPU by `torchrun --nproc_per_node N -m nora run …`"
        )
    return replicas


def job(config: DictConfig) -> None:
    """One job of a Hydra multirun, on this machine or wherever its launcher put it."""
    from nora.workspace import find_checkout

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    checkout = find_checkout()
    spec = build_spec(plain, Pins(checkout))
    settings: ExecSpec = validate(plain["exec"], ExecSpec, prefix="exec.")
    slurm_job = _slurm_job()
    if slurm_job is not None:
        settings = replace(settings, progress=False)
    record = run_once(spec, settings, checkout, slurm_job=slurm_job)
    if record.status != "done":
        raise RunFailed(f"run {record.id} {record.status}")


_FLAGS_WITH_VALUE = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
    "--info",
    "-i",
)


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


def _slurm_job() -> str | None:
    """The SLURM job that Hydra's launcher put this into: earlier starts of it are dead, whatever their heartbeat."""
    own = HydraConfig.get()
    return str(own.job.id) if own.runtime.choices.get("hydra/launcher") == "submitit_slurm" else None


def _set_launcher(name: str, settings: dict[str, Any]) -> None:
    """Gives a submitit launcher other defaults; what is typed as hydra.launcher.… still wins."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    try:
        from hydra_plugins.hydra_submitit_launcher import config as plugin
    except ImportError:
        raise UserError(f"hydra/launcher={name}: hydra-submitit-launcher is not installed") from None
    Plugins.instance()  # the plugin's own defaults are there before they are replaced
    kinds = {"submitit_slurm": plugin.SlurmQueueConf, "submitit_local": plugin.LocalQueueConf}
    node = kinds[name](**settings)
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="nora")


def run(arguments: Sequence[str], checkout: Path, launcher: Launcher | None = None) -> int:
    """The exit code of ``nora run ARGUMENTS``; raises UserError for wrong input and RunFailed for failed work.

    ``launcher`` gives the settings of the launcher that a multirun names.
    """
    flags, overrides = _split(arguments)
    if not flags:
        spec, settings, _ = compose_run(checkout, overrides)
        check_ready(spec)
        check_inputs(spec, checkout)
        return 0 if run_once(spec, settings, checkout).status == "done" else 1
    shows = {"--cfg", "-c", "--info", "-i"} & {flag.split("=")[0] for flag in flags}
    if shows and {"-m", "--multirun"} & set(flags):
        raise UserError(f"{', '.join(sorted(shows))}: given with -m; required without it: it shows one run's config")
    own = [o for o in overrides if not o.lstrip("+~").startswith("hydra")]
    if {"-m", "--multirun"} & set(flags):
        jobs = expand_sweep(own)
        specs = [compose_run(checkout, one)[0] for one in jobs]  # all of them are right before the first one starts
        for spec in specs:
            check_ready(spec)
            check_inputs(spec, checkout)
        print(f"{len(jobs)} jobs, {len({run_id(spec) for spec in specs})} different runs", flush=True)
        if launcher is not None:
            _set_launcher(*launcher(specs))
    elif not {"--help", "-h", "--hydra-help", "--version"} & set(flags):
        compose_run(checkout, own)
    sys.argv = ["nora run", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print the error of a job with its traceback and exit itself
    try:
        hydra.main(config_path=str(checkout / "conf"), config_name="config", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(first_line(error)) from None
    return 0

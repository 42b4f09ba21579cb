"""Hydra's own submitit launchers on the site files of slurm/profiles/: a profile as the launcher's settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nora.launch.profile import Profile, Resources, load_profile
from nora.runs.compose import compose_config
from nora.runs.hydra_app import Launcher
from nora.runs.schema import ExecSpec, Spec, validate

_SLURM, _LOCAL = "submitit_slurm", "submitit_local"
_PLACING = ("exec.profile", "exec.partition", "exec.parallel")
_UNBOUNDED = 1_000_000  # requeues
# Several spellings of one resource: who types one of them gets none of the profile's.
_ALTERNATIVES = (
    {"gres", "gpus_per_node", "gpus_per_task"},
    {"mem_gb", "mem_per_gpu", "mem_per_cpu"},
    {"cpus_per_task", "cpus_per_gpu"},
)


def place(arguments: Sequence[str], checkout: Path) -> tuple[list[str], Launcher | None]:
    """The words of ``nora run`` without those that choose a place, and the launcher's settings as a function of the
    sweep's specs; None where no submitit launcher is asked for (or the local one without a profile)."""
    chosen = [word.partition("=")[2] for word in arguments if word.startswith("hydra/launcher=")]
    words = [word for word in arguments if word.partition("=")[0] in _PLACING]
    if chosen not in ([_SLURM], [_LOCAL]) or (chosen == [_LOCAL] and not words):
        return list(arguments), None
    config = compose_config(checkout / "conf", ["exec=slurm", *words])
    settings: ExecSpec = validate(config["exec"], ExecSpec, prefix="exec.")
    profile = load_profile(checkout, settings)
    typed = {word.partition("=")[0].lstrip("+~").removeprefix("hydra.launcher.") for word in arguments}
    rest = [word for word in arguments if word not in words]
    return rest, partial(_settings, chosen[0], profile, typed)


def _settings(name: str, profile: Profile, typed: set[str], specs: Sequence[Spec]) -> tuple[str, dict[str, Any]]:
    resources = _largest(profile, specs)
    if name == _LOCAL:  # starts everything at once on this machine: only the time means anything
        return name, {"timeout_min": resources.time_min}
    options = profile.sbatch_options(resources.gpus)
    if typed & _ALTERNATIVES[0]:
        options["additional_parameters"].pop("gpus-per-node", None)
    settings: dict[str, Any] = {
        "name": "nora-multirun",
        "timeout_min": resources.time_min,
        "cpus_per_task": resources.cpus,
        "mem_gb": math.ceil(resources.mem_gb),
        "signal_delay_s": profile.signal_delay_s,
        "array_parallelism": profile.parallel,
        "max_num_timeout": _UNBOUNDED if profile.requeue else 0,
        "setup": [_for_bash_alone(line) for line in profile.setup_lines()],
        **options,
    }
    if not typed & _ALTERNATIVES[2]:  # srun in a batch job does not take over --cpus-per-task from 22.05 on
        settings["setup"].append(f"export SRUN_CPUS_PER_TASK={resources.cpus}")
    dropped = {key for group in _ALTERNATIVES if group & typed for key in group}
    return name, {key: value for key, value in settings.items() if key not in dropped}


def _for_bash_alone(line: str) -> str:
    """The line without ``${``, which Hydra would resolve, some values once and some three times, on the way."""
    if "${" not in line:
        return line
    text = line.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\x24{")
    return f"eval $'{text}'"


def _largest(profile: Profile, specs: Sequence[Spec]) -> Resources:
    """What every job of a sweep is given (Hydra's launcher has one set): the most that any of its runs needs."""
    classes = {(spec.kind, getattr(getattr(spec, "model", None), "name", None)) for spec in specs}
    needs = [profile.resources_of(*one) for one in sorted(classes, key=str)]
    return Resources(
        gpus=max(r.gpus for r in needs),
        cpus=max(r.cpus for r in needs),
        mem_gb=max(r.mem_gb for r in needs),
        time_min=max(r.time_min for r in needs),
    )

"""``nora doctor``: what this machine has and lacks for a campaign. Looks only; changes nothing."""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nora.errors import RunFailed, UserError
from nora.execution import provenance
from nora.files import DamagedFile, read_json
from nora.launch import slurm

_HUB = ("huggingface.co", 443)
_SECONDS = 3.0
_ROOM_GIB = 20
_LIBRARIES = {"torch": True, "transformers": True, "peft": True, "submitit": False, "wandb": False}  # needed?
_FOLDERS = {"models": "models--", "pictures": "datasets--"}  # of the lock, as the Hub's cache names them


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``note``: works without it, but know it; ``bad``: runs will fail."""

    what: str
    verdict: Literal["good", "note", "bad"]
    said: str


def _libraries() -> list[Finding]:
    found = []
    for name, needed in _LIBRARIES.items():
        try:
            found.append(Finding(name, "good", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, "bad" if needed else "note", "not installed"))
    return found


def _disk(what: str, path: Path) -> Finding:
    existing = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    return Finding(what, "good" if free > _ROOM_GIB else "note", f"{free:.0f} GiB free at {existing}")


def _hub() -> list[Finding]:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        found = [Finding("Hub", "note", "HF_HUB_OFFLINE=1: only what `nora prefetch` has brought is used")]
    else:
        try:
            socket.create_connection(_HUB, timeout=_SECONDS).close()
            found = [Finding("Hub", "good", f"{_HUB[0]} answers")]
        except OSError as error:
            found = [Finding("Hub", "note", f"{_HUB[0]} does not answer ({error}); runs on shipped data work")]
    token = get_token() is not None
    found.append(
        Finding("Hub token", "good" if token else "note", "there" if token else "none: gated models stay shut")
    )
    return [*found, _disk("Hub cache", Path(constants.HF_HUB_CACHE))]


def _pins(checkout: Path) -> Finding:
    """What is pinned, and which of it the Hub's cache does not have: a lock may come from another machine."""
    from huggingface_hub import constants

    try:
        lock = read_json(checkout / "conf" / "revisions.lock", dict.fromkeys(_FOLDERS, (dict,)), follow=True)
    except (FileNotFoundError, DamagedFile) as error:
        return Finding("revisions.lock", "bad", f"{error} (git checkout conf/revisions.lock)")
    models, sets = len(lock.get("models", {})), len(lock.get("tasks", {}))
    absent = [
        repo
        for group, prefix in _FOLDERS.items()
        for repo, pinned in lock.get(group, {}).items()
        if not (
            Path(constants.HF_HUB_CACHE) / f"{prefix}{repo.replace('/', '--')}" / "snapshots" / pinned["commit"]
        ).is_dir()
    ]
    said = f"{models} models, {sets} data sets pinned"
    if absent:
        return Finding("revisions.lock", "note", f"{said}; not in the Hub cache: {', '.join(absent)} (`nora prefetch`)")
    return Finding("revisions.lock", "good" if models and sets else "note", f"{said} (`nora prefetch TARGET`)")


def _slurm() -> Finding:
    """Installed and answering; client commands without a cluster (as on a build machine) are a note."""
    if not slurm.installed():
        return Finding("SLURM", "note", "not here: exec=slurm needs a login node")
    try:
        waiting = sum(task.alive for task in slurm.queue())
        return Finding("SLURM", "good", f"answers; {waiting} jobs of yours; MaxArraySize {slurm.max_array_size()}")
    except (RunFailed, UserError) as error:
        return Finding("SLURM", "note", f"does not answer: {' '.join(str(error).split())[:90]}")


def _code(checkout: Path) -> Finding:
    version = provenance.code_version(checkout)
    if version["commit"] == provenance.UNKNOWN:
        return Finding("checkout", "note", f"commit unknown, exec.code=live only: {version['git']}")
    if version["dirty"]:
        first, more = version["changed"][:3], len(version["changed"]) - 3
        said = f"{version['commit'][:12]}, changed since: {', '.join(first)}{f' and {more} more' if more > 0 else ''}"
        return Finding("checkout", "note", said)
    return Finding("checkout", "good", version["commit"][:12])


def examine(checkout: Path | None, results: Path) -> list[Finding]:
    """Every finding, in a fixed order; without a checkout those of the machine."""
    python = ".".join(map(str, sys.version_info[:3]))
    return [
        Finding("Python", "good" if sys.version_info >= (3, 11) else "bad", python),
        *_libraries(),
        _code(checkout) if checkout else Finding("checkout", "note", "none here: NORA_CHECKOUT names one"),
        _disk("results", results),
        *_hub(),
        *([_pins(checkout)] if checkout else []),
        _slurm(),
    ]


def report(findings: list[Finding]) -> str:
    """One line per finding."""
    width = max(15, *(len(f.what) for f in findings))
    signs = {"good": "ok  ", "note": "note", "bad": "BAD "}
    return "\n".join(f"{signs[f.verdict]}  {f.what:{width}} {f.said}" for f in findings)

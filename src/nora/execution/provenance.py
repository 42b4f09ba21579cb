"""How a run came about: code, libraries, machine. Goes into the record's ``run`` part, never into an id."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "nora", "torch", "transformers", "peft", "diffusers", "pillow", "numpy", "safetensors", "tokenizers", "hydra-core",
    "omegaconf",
)  # fmt: skip
SNAPSHOT = ".nora-snapshot.json"
# Changing results or the choice made from them is what runs do; it does not make the code that ran another.
_NOT_CODE = ("results/", "conf/chosen/")


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def code_version(checkout: Path) -> dict[str, Any]:
    """The commit, and whether a tracked file outside results/ and conf/chosen/ differs from it."""
    try:  # a snapshot made at launch has no .git and says itself what it is
        snapshot = json.loads((checkout / SNAPSHOT).read_text(encoding="utf-8"))
        return {"commit": snapshot["commit"], "dirty": False}
    except FileNotFoundError:
        pass
    commit = _git(checkout, "rev-parse", "HEAD")
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return {"commit": None, "dirty": None}
    paths = [line[3:].split(" -> ")[-1].strip('"') for line in changed.splitlines()]
    return {"commit": commit.strip(), "dirty": any(not path.startswith(_NOT_CODE) for path in paths)}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def machine(device: str, threads: int) -> dict[str, Any]:
    """Host, processor, device and thread count."""
    return {
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "device": device,
        "threads": threads,
        "python": platform.python_version(),
    }


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries a number can depend on."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions

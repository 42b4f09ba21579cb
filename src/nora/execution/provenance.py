"""How a run came about: code, libraries, machine. Goes into the record's ``run`` part, never into an id."""

from __future__ import annotations

import logging
import os
import platform
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import nora
from nora.files import canonical_json, read_json, sha256_bytes, sha256_file

_LIBRARIES = (
    "nora", "torch", "transformers", "peft", "diffusers", "pillow", "numpy", "safetensors", "tokenizers", "hydra-core",
    "omegaconf",
)  # fmt: skip
SNAPSHOT = ".nora-snapshot.json"
UNKNOWN = "unknown"
# Changing results or the choice made from them is what runs do; it does not make the code that ran another.
_NOT_CODE = (":!results", ":!conf/chosen")
# A file that git does not know is a part of a run only where runs look for their parts.
_READ_BY_RUNS = ("src/", "conf/", "data/", "assets/")
_NAMED = 20
_LOG = logging.getLogger(__name__)


class NoGit(Exception):
    """Git did not answer for a checkout; the message is its own words."""


def git(checkout: Path, *arguments: str) -> bytes:
    """What git says of this checkout and of no other (no GIT_* variable counts); takes no lock, so that a command of
    the user's beside it is not in its way. NoGit with git's words where it refuses."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"LC_ALL": "C"}
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoGit(f"git: {error}") from None
    if done.returncode != 0:
        raise NoGit(" ".join(done.stderr.decode(errors="replace").split()) or f"git: exit code {done.returncode}")
    return done.stdout


def package_root() -> Path:
    """The folder the imported package lies in: its checkout, or where a wheel was installed."""
    package = Path(nora.__file__).resolve().parent
    return package.parents[1] if package.parent.name == "src" else package.parent


def changes(checkout: Path) -> list[tuple[str, str]]:
    """(git's two letters, path) of what differs from the commit and that a run could read; ``??``: not known to git."""
    said = git(checkout, "status", "--porcelain", "-z", "--untracked-files=all", "--", ".", *_NOT_CODE)
    entries = iter(said.decode(errors="surrogateescape").split("\0")[:-1])
    found = []
    for entry in entries:
        letters, path = entry[:2], entry[3:]
        if "R" in letters or "C" in letters:
            next(entries, None)  # the name it had
        if letters != "??" or path.startswith(_READ_BY_RUNS):
            found.append((letters, path))
    return found


def code_version(root: Path) -> dict[str, Any]:
    """The commit of the code in ``root`` and whether something that runs read differs from it, with the first names.

    Without a commit that is the checkout's own: ``commit: unknown`` and why; of an installed package its version and
    the hash of its files.
    """
    try:  # a snapshot made at launch has no .git and says itself what it is
        return read_json(root / SNAPSHOT, {"commit": (str,)})
    except FileNotFoundError:
        pass
    if (root / "nora" / "__init__.py").is_file():  # not below src/
        said = "an installed package, no checkout"
        version, digest = nora.__version__, _files_hash(root / "nora")
        return {"commit": UNKNOWN, "dirty": None, "git": said, "version": version, "files_sha256": digest}
    try:
        top = Path(os.fsdecode(git(root, "rev-parse", "--show-toplevel")).rstrip("\n"))
        if top.resolve() != root.resolve():
            raise NoGit(f"{root} has no repository of its own; it lies inside that of {top}")
        commit = git(root, "rev-parse", "HEAD").decode().strip()
        changed = [path for _, path in changes(root)]
    except NoGit as error:
        return {"commit": UNKNOWN, "dirty": None, "git": str(error)}
    version_of_code: dict[str, Any] = {"commit": commit, "dirty": bool(changed)}
    return version_of_code | ({"changed": changed[:_NAMED]} if changed else {})


@cache
def code_of_this_process() -> dict[str, Any]:
    """``code_version`` of the imported package, asked once: a commit made while this process works is not its code."""
    version = code_version(package_root())
    if version["commit"] == UNKNOWN:
        _LOG.warning("commit unknown: %s", version["git"])
    return version


def _files_hash(package: Path) -> str:
    files = {str(p.relative_to(package)): sha256_file(p) for p in package.rglob("*") if p.suffix in (".py", ".yaml")}
    return sha256_bytes(canonical_json(files).encode())


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

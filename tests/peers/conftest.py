"""PEFT's own tests, from the source distribution of the installed version; what they need beside what is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

BESIDE = ["parameterized==0.9.0", "attrs"]  # imported by PEFT's tests alone
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "20"]


def _fetch(folder: Path, peft: str) -> None:
    """Fills ``folder`` with the unpacked distribution and ``beside/``. Raises CalledProcessError, TimeoutExpired."""
    download = [
        *_PIP,
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "peft",
        "--dest",
        str(folder),
        f"peft=={peft}",
    ]
    install = [*_PIP, "install", "--quiet", "--no-deps", "--target", str(folder / "beside"), *BESIDE]
    for command in (download, install):
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=150)
    (archive,) = folder.glob("peft-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (folder / f"peft-{peft}" / "tests" / "__init__.py").touch()  # its modules import each other; the archive lacks it


@pytest.fixture(scope="session")
def peft_source(pytestconfig: pytest.Config) -> Path:
    """The folder with PEFT's ``tests`` (in pytest's cache, fetched once); skips where the registry is out of reach."""
    peft = version("peft")
    assert pytestconfig.cache is not None
    cache = Path(pytestconfig.cache.mkdir("peers"))
    ready, fresh = cache / f"peft-{peft}", cache / f"fetching-{os.getpid()}"
    if not (ready / "done").exists():
        fresh.mkdir(exist_ok=True)
        try:
            _fetch(fresh, peft)
        except (subprocess.SubprocessError, OSError) as error:
            reason = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
            pytest.skip(f"the source distribution of peft {peft} is not to be had from the package registry: {reason}")
        (fresh / "done").touch()
        with contextlib.suppress(OSError):  # another worker was first
            fresh.rename(ready)
        shutil.rmtree(fresh, ignore_errors=True)
    assert (ready / f"peft-{peft}" / "tests").is_dir(), "PEFT's source distribution no longer carries its tests"
    return ready

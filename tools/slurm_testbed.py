"""One real SLURM on free ports of the loopback (slurm/testbed/), taken down by its own pid files."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parents[1] / "slurm" / "testbed"
_BLOCK = 40


@contextmanager
def _free_ports() -> Iterator[int]:
    """The first of forty free ports in a row, which no other testbed of this machine is given meanwhile."""
    for base in range(21000, 31000, _BLOCK):
        sockets = []
        claim = (Path(tempfile.gettempdir()) / f"nora-slurm-{base}.lock").open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for port in range(base, base + _BLOCK):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        finally:
            for one in sockets:
                one.close()
        with claim:
            yield base
        return
    raise RuntimeError("no forty free ports in a row")


def why_not() -> str | None:
    """What this machine lacks for it; None where it has everything."""
    if os.getuid() != 0:
        return "not root"
    path = os.environ["PATH"] + ":/usr/sbin"
    missing = [c for c in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(c, path=path)]
    return f"{', '.join(missing)} not installed (slurm/testbed/install.sh)" if missing else None


@contextmanager
def cluster(*, own_hostnames: bool = False) -> Iterator[dict[str, str]]:
    """Two nodes; what a process' environment needs to be a client of theirs. ``own_hostnames``: what runs on a node
    sees a host of its own."""
    top = Path(tempfile.mkdtemp(prefix="nora-slurm-"))  # munged refuses pytest's 0700 folders
    top.chmod(0o755)
    folder = top / "c"
    with _free_ports() as ports:
        env = {**os.environ, "TESTBED": str(folder), "PORT": str(ports), "NODES": "2", "GRACE": "8"}
        env |= {"HOSTNAMES": "1"} if own_hostnames else {}
        try:
            subprocess.run([_SCRIPTS / "up.sh"], env=env, check=True, timeout=90, stdout=subprocess.DEVNULL)
            yield {
                "TESTBED": str(folder),
                "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
                "PATH": f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin",
            }
        finally:
            subprocess.run([_SCRIPTS / "down.sh"], env=env, timeout=90, check=False)
            shutil.rmtree(top, ignore_errors=True)


def controller_lives(folder: Path) -> bool:
    """Whether slurmctld is there: it crashes by itself once in many disturbances (a segmentation fault of SLURM's)."""
    return Path(f"/proc/{_controller(folder)}").exists()


def _controller(folder: Path) -> int:
    return int((folder / "run" / "slurmctld.pid").read_text())


def restart_controller(folder: Path) -> None:
    """slurmctld ends in order, where it lives, and starts anew on its saved state and slurm.conf as it is now; the jobs
    run on."""
    pid = _controller(folder)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    path = f"{os.environ['PATH']}:/usr/sbin"
    subprocess.run(
        ["setsid", "slurmctld", "-i"], env={**os.environ, "PATH": path}, check=True, timeout=30,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    subprocess.run(["scontrol", "reconfigure"], check=True, timeout=30)  # every slurmd is asked at once
    end = time.monotonic() + 60
    while True:  # it answers, and every slurmd has told it of itself
        said = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], capture_output=True, text=True, check=False)
        if said.returncode == 0 and "unk" not in said.stdout:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"slurmctld does not come back; see {folder / 'log' / 'slurmctld.log'}")
        time.sleep(0.05)


@contextmanager
def configured(folder: Path, *lines: str) -> Iterator[None]:
    """The running cluster with more lines in its slurm.conf, as a site would have them (the last value wins)."""
    conf = folder / "etc" / "slurm.conf"
    before = conf.read_text()
    conf.write_text(before + "\n".join(lines) + "\n")
    try:
        restart_controller(folder)
        yield
    finally:
        conf.write_text(before)
        restart_controller(folder)

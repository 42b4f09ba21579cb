"""One real SLURM per session: brought up on free ports of the loopback, taken down by its own pid files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import STAGE_1, Testbed

from nora import cli
from nora.files import canonical_json
from nora.store.runs import Store
from nora.store.states import take_snapshot

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "slurm" / "testbed"
_BLOCK = 40


def _free_ports() -> int:
    """The first of forty free ports in a row."""
    for base in range(21000, 31000, _BLOCK):
        sockets = []
        try:
            for port in range(base, base + _BLOCK):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise RuntimeError("no forty free ports in a row")


def _why_not() -> str | None:
    if os.getuid() != 0:
        return "not root"
    path = os.environ["PATH"] + ":/usr/sbin"
    missing = [c for c in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(c, path=path)]
    return f"{', '.join(missing)} not installed (slurm/testbed/install.sh)" if missing else None


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Path]:
    reason = _why_not()
    if reason:
        pytest.skip(f"NO REAL SLURM: {reason}")
    top = Path(tempfile.mkdtemp(prefix="nora-slurm-"))  # munged refuses pytest's 0700 folders
    top.chmod(0o755)
    folder = top / "c"
    before = dict(os.environ)
    env = {**before, "TESTBED": str(folder), "PORT": str(_free_ports()), "NODES": "2", "GRACE": "8"}
    try:
        subprocess.run([SCRIPTS / "up.sh"], env=env, check=True, timeout=90, stdout=subprocess.DEVNULL)
        os.environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
        os.environ["PATH"] = f"{folder / 'bin'}:{before['PATH']}:/usr/sbin"
        os.environ["PYTHONPATH"] = str(ROOT / "src")
        yield folder
    finally:
        subprocess.run([SCRIPTS / "down.sh"], env=env, timeout=90, check=False)
        os.environ.pop("SLURM_CONF", None)
        os.environ["PATH"] = before["PATH"]
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def slurm(_cluster: Path, tmp_path: Path) -> Iterator[Testbed]:
    """The cluster, empty, with a results folder of the test's own."""
    bed = Testbed(_cluster, tmp_path / "results", sys.executable)
    bed.clear()
    yield bed
    bed.clear()


@pytest.fixture(scope="session")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The long run's result, undisturbed, here."""
    root = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        words = ["table2", "scale=smoke", *STAGE_1, f"exec.results={folder}", "exec.processes=1"]
        cli.main(["launch", *words])
    (record,) = take_snapshot(Store(folder)).values()
    return canonical_json(record.result)

"""One real SLURM per session: brought up on free ports of the loopback, taken down by its own pid files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import STAGE_1, Testbed

import slurm_testbed
from nora import cli
from nora.files import canonical_json
from nora.store.runs import Store
from nora.store.states import take_snapshot

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Path]:
    reason = slurm_testbed.why_not()
    if reason:
        pytest.skip(f"NO REAL SLURM: {reason}")
    with slurm_testbed.cluster() as client, pytest.MonkeyPatch.context() as patch:
        for key, value in {**client, "PYTHONPATH": str(ROOT / "src")}.items():
            patch.setenv(key, value)
        yield Path(client["TESTBED"])


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

"""What every test may use: the checkout, one thread, an empty store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For several workers: a file's tests stay together (fixtures are made once), those on SLURM share one cluster."""
    for item in items:
        room = "slurm" if item.get_closest_marker("slurm") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(room))
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)  # the longest room first


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The checkout these tests belong to."""
    return ROOT


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the checkout from the working directory."""
    monkeypatch.chdir(ROOT)

"""What every test may use: the checkout, one thread, an empty store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on SLURM first: they wait more than they compute, and beside them the others run."""
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The checkout these tests belong to."""
    return ROOT


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the checkout from the working directory."""
    monkeypatch.chdir(ROOT)

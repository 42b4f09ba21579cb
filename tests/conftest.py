"""What every test may use: the checkout, one thread, an empty store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The checkout these tests belong to."""
    return ROOT


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the checkout from the working directory."""
    monkeypatch.chdir(ROOT)

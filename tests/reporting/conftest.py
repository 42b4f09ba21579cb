"""A store of made-up records, as files: what the verbs read."""

from __future__ import annotations

from pathlib import Path

import pytest

from nora.store.runs import Store
from nora.tables.methods import Table, load_table

from synthetic import complete  # isort: skip

WORDS = ("scale=mini", "task=cb", "seed=0,1")


@pytest.fixture(scope="session")
def narrow(checkout: Path) -> Table:
    """Table 2 of one task and two seeds."""
    return load_table(checkout, "table2", WORDS)


@pytest.fixture
def store(narrow: Table, checkout: Path, tmp_path: Path) -> Store:
    """A record for each of its cells."""
    made = Store(tmp_path / "results")
    for record in complete(narrow).values():
        assert made.publish_record(record)
    return made

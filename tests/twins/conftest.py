"""The twins' Hub, fetched from once: what the tests of this folder share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hub_twins.contents import make_hub, sentencepiece_of_mistral
from hub_twins.rehearsal import Fetched, fetch, offline


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    folder = tmp_path_factory.mktemp("twins")
    done = fetch(make_hub(sentencepiece_of_mistral()), folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return Fetched(folder, done.stdout)


@pytest.fixture(scope="session")
def ran(fetched: Fetched) -> list[dict[str, Any]]:
    """A run of each protocol and base, and of each subject: in one process, without a network."""
    done = offline(fetched.folder, "one")
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

"""Runs at smoke scale, in a store of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nora.execution.execute import execute
from nora.kinds import compose_run
from nora.store.record import Record
from nora.store.runs import Store


@pytest.fixture
def run(checkout: Path, tmp_path: Path) -> Callable[..., tuple[Record, bool]]:
    """``run("method=nora", store=…, show=…)``: composes and executes on CB at smoke scale."""

    def execute_run(*overrides: str, store: Path | None = None, show: Any = None, task: str = "cb") -> Any:
        spec, settings, _ = compose_run(
            checkout, ["scale=smoke", f"task={task}", "exec.progress=false", "exec.device=cpu", *overrides]
        )
        target = Store(store or tmp_path / "results")
        extra = {} if show is None else {"show": show}
        return execute(spec, settings, checkout=checkout, store=target, **extra)

    return execute_run

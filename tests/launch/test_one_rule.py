"""One rule for a run's state: the plan, the status and every table say the same of the same files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nora import cli
from nora.kinds import compose_run
from nora.launch.plan import current_plan
from nora.reporting.collation import build_artefact
from nora.reporting.document import Document
from nora.store.runs import Store
from nora.store.states import State, take_snapshot
from nora.tables.target import load_target
from nora.workspace import Workspace

WORDS = ["scale=smoke", "task=cb", "seed=0", "method=lora"]


@pytest.fixture(scope="module")
def made(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with LoRA's run."""
    results = tmp_path_factory.mktemp("made")
    assert cli.main(["launch", "table2", *WORDS, f"exec.results={results}", "exec.processes=1"]) == 0
    return results


def _predictions_gone(folder: Path) -> None:
    (path,) = folder.glob("predictions*")
    path.unlink()


def _predictions_changed(folder: Path) -> None:
    (path,) = folder.glob("predictions*")
    path.write_bytes(b"other")


def _adapter_gone(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "state"),
    [(_predictions_gone, "damaged"), (_predictions_changed, "damaged"), (_adapter_gone, "done")],
)
def test_what_a_record_lists_is_looked_at_by_the_plan_and_by_the_table(
    harm: Callable[[Path], None], state: str, made: Path, checkout: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "results")
    shutil.copytree(made, store.root)
    target = load_target(checkout, "table2", WORDS)
    workspace = Workspace(checkout, store, compose_run(checkout, WORDS[:1])[1])
    before = current_plan(target, workspace)
    assert {p.state for p in before} == {State.DONE}
    for p in before:
        harm(store.run_dir("finetune", str(p.cell.id)))
    assert {p.state for p in current_plan(target, workspace)} == {state}
    document = build_artefact(target, take_snapshot(store))
    assert isinstance(document, Document)
    texts = [entry.text for line in document.blocks[0].lines for entry in line.entries if line.label == "LoRA"]
    assert any("damaged" in text for text in texts) == (state == "damaged"), texts

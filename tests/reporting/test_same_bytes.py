"""The same records give the same bytes, whatever the hash seed and the order they are read in; and what is committed
is what the committed records give."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nora.config.spec import run_id
from nora.files import sha256_file
from nora.reporting.collation import audit_all, collate, collate_all, with_all_scales
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import Snapshot, take_snapshot
from nora.tables.cell import names
from nora.tables.methods import Table
from nora.tables.target import load_target

CODE = """
import sys
from pathlib import Path
import nora.reporting.collation as collation
from nora.store.states import Snapshot
from nora.store.runs import Store
from nora.tables.target import load_target

out, backwards = Path(sys.argv[1]), sys.argv[2] == "backwards"
take = collation.take_snapshot
def ordered(store):
    found = take(store)
    return Snapshot(dict(reversed(list(found.items()))), damaged=found.damaged, unfinished=found.unfinished)
if backwards:
    collation.take_snapshot = ordered
checkout = Path.cwd()
targets = [load_target(checkout, name) for name in ("table1", "table2", "table5", "fig1", "fig2", "fig3", "deployment")]
collation.collate_all(targets, Store(out), checkout=checkout, show=lambda line: None)
"""


def test_two_processes_write_the_same_bytes(checkout: Path, tmp_path: Path) -> None:
    """Markdown, LaTeX, CSV, PDF, PNG and HTML, from the committed records."""
    hashes = []
    for seed, order in (("0", "forwards"), ("4711", "backwards")):
        out = tmp_path / order
        out.mkdir()
        (out / "runs").symlink_to(checkout / "results" / "runs")
        subprocess.run(
            [sys.executable, "-c", CODE, str(out), order],
            cwd=checkout, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, timeout=240,
        )  # fmt: skip
        files = sorted(path for part in ("tables", "figures") for path in (out / part).iterdir())
        files.append(out / "report.html")
        hashes.append({str(path.relative_to(out)): sha256_file(path) for path in files})
    assert hashes[0] == hashes[1]
    assert {Path(name).suffix for name in hashes[0]} == {".md", ".tex", ".csv", ".pdf", ".png", ".jpg", ".html"}


def test_what_is_committed_is_what_the_committed_records_give(checkout: Path) -> None:
    """Tables, figures' numbers and captions, and the report around the committed pictures."""
    store = Store(checkout / "results")
    targets = with_all_scales([load_target(checkout, name) for name in names(checkout)])
    snapshot = take_snapshot(store)
    problems = audit_all(targets, snapshot, store.root)
    assert problems == [], "run `make paper` and commit what it writes"
    like = next(r for r in snapshot.values() if r.kind == "finetune" and "method" in r.spec)
    spec = {**like.spec, "seed": 4711}
    stray = Record(run_id(spec), {**like.result, "spec": spec}, {**like.run, "wall_seconds": 1e6}, like.folder)
    problems = audit_all(targets, Snapshot({**snapshot, stray.id: stray}), store.root)
    assert problems == [], "a run that is in no table shows nowhere"
    assert len(list((store.root / "tables").glob("*.tex"))) > 8


def test_runs_without_a_record_change_no_file(store: Store, narrow: Table, checkout: Path) -> None:
    """What a checkout knows of failed or interrupted runs is told, and is in no file: a clone would lack it."""
    absent = next(store.root.glob("runs/finetune/*"))
    shutil.rmtree(absent)
    said: list[str] = []

    def written() -> dict[str, str]:
        paths = collate_all([narrow], store, checkout=checkout, show=said.append)
        paths += collate([narrow], take_snapshot(store), store.root, show=said.append)
        return {path.name: sha256_file(path) for path in paths}

    before = written()
    assert "report.html" in before and not any("interrupted" in line for line in said)
    store.new_attempt("finetune", absent.name).interrupt("SIGTERM at step 7")
    assert written() == before
    assert any("1 interrupted" in line for line in said)
    assert audit_all([narrow], take_snapshot(store), store.root) == []


@pytest.mark.parametrize("suffix", ["md", "tex", "csv"])
def test_every_committed_table_belongs_to_a_target(suffix: str, checkout: Path) -> None:
    """A file that nothing writes any more would stay as it is for ever."""
    known = {name.split(".")[0] for name in names(checkout)} | {"theory"}
    files = (checkout / "results" / "tables").glob(f"*.{suffix}")
    assert {path.name.split(".")[0] for path in files} <= known

"""Collation of 1,500 made-up records: text tables without torch, everything, and nothing to do."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nora.config.spec import run_id
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import take_snapshot
from nora.tables.cell import names
from nora.tables.methods import Table
from nora.tables.target import load_target
from nora.workspace import find_checkout

_RECORDS = 1500
_DRAWN = ("beyond", "curves")  # figures that are not the paper's
_CODE = (
    "import sys; from nora.cli import main; rc = main({}); "
    "print('TORCH' if 'torch' in sys.modules else 'no torch'); sys.exit(rc)"
)


def _fill(results: Path, checkout: Path, wanted: int) -> int:
    """A store with the checkout's own records, a made-up one for each cell of Table 2 that has none, and the rest runs
    of further seeds; returns how many records there are."""
    sys.path.insert(0, str(checkout / "tests"))
    from synthetic import complete  # the way the tests make records

    store, records = Store(results), dict(take_snapshot(Store(checkout / "results")))
    table = load_target(checkout, "table2")
    assert isinstance(table, Table)
    for identity, record in complete(table).items():
        records.setdefault(identity, record)
    more = [record for record in records.values() if record.spec["kind"] == "finetune"]
    for i in range(max(0, wanted - len(records))):
        like = more[i % len(more)]
        spec = {**like.spec, "seed": 100 + i}
        records[run_id(spec)] = Record(run_id(spec), {**like.result, "spec": spec}, like.run)
    for record in records.values():
        path = store.record_path(record.spec["kind"], record.id)
        path.parent.mkdir(parents=True)
        path.write_text(record.to_json(), encoding="utf-8")
        for picture in record.folder.glob("picture_*") if record.folder is not None else ():
            shutil.copy(picture, path.parent)
    return len(records)


def _timed(words: list[str], checkout: Path) -> tuple[dict[str, float], str]:
    """Wall and CPU seconds of a fresh process, and what it printed."""
    started, used = time.perf_counter(), _cpu()
    done = subprocess.run(
        [sys.executable, "-c", _CODE.format(words)], capture_output=True, text=True, check=True, cwd=checkout
    )
    return {"seconds": time.perf_counter() - started, "cpu_seconds": _cpu() - used}, done.stdout


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def run(*, quick: bool) -> dict[str, Any]:
    """Wall seconds of fresh processes over one filled store, in a copy of the checkout (choices are written there)."""
    checkout = find_checkout()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        for part in ("conf", "src", "data", "assets", "pyproject.toml"):
            source = checkout / part
            copied = shutil.copytree if source.is_dir() else shutil.copy
            copy.mkdir(exist_ok=True)
            copied(source, copy / part)
        results = copy / "results"
        results.mkdir()
        shutil.copy(checkout / "results" / "theory.json", results / "theory.json")
        count = _fill(results, checkout, 300 if quick else _RECORDS)
        texts = [name for name in names(checkout) if not name.startswith("fig") and name not in _DRAWN]
        first, _ = _timed(["collate", "all"], copy)
        _timed(["collate", "all"], copy)  # the first one wrote conf/chosen, which is an input
        again, said = _timed(["collate", "all"], copy)
        shown, output = _timed(["collate", *texts], copy)
        rows = [
            {"what": f"text tables ({len(texts)} targets)", **shown, "aim": 5.0,
             "torch_imported": not output.rstrip().endswith("no torch")},
            {"what": "collate all, the first time", **first, "aim": 60.0, "torch_imported": None},
            {"what": "collate all, nothing to do", **again, "aim": 2.0,
             "torch_imported": not said.rstrip().endswith("no torch")},
        ]  # fmt: skip
        assert said.startswith("nothing to do"), said
        report = (results / "report.html").stat().st_size
    return {"records": count, "report_bytes": report, "rows": rows, "load": _load()}


def _load() -> float:
    """Processes that wanted a CPU over the last minute: if it is high, others were at work on this machine."""
    return float(Path("/proc/loadavg").read_text().split()[0])


def table(result: dict[str, Any]) -> str:
    """The rows for a terminal."""
    lines = [f"{result['records']} records, report {result['report_bytes'] / 1e6:.1f} MB, load {result['load']}"]
    for row in result["rows"]:
        lines.append(
            f"{row['what']:32} {row['seconds']:7.2f} s, of the CPU {row['cpu_seconds']:6.2f} s (aim {row['aim']:.0f} s)"
        )
    return "\n".join(lines)

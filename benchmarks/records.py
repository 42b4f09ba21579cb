"""Thousands of records: what it costs to show one, to say how far everything is, and to export, over their number.

Stores of made-up records that lie beside the checkout's own (each with its predictions); every figure is of a fresh
process. ``status all`` the first time has no memory beside the records, the second time it has.
"""

from __future__ import annotations

import os
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
from nora.workspace import find_checkout

_COUNTS = (1_500, 5_000, 20_000, 100_000)
_AIMS = {"show": 0.5, "status": 3.0}
_AT = 5_000
_MEASURE = (
    "import resource, sys; from nora.cli import main; code = main({}); "
    "used = resource.getrusage(resource.RUSAGE_SELF); "
    "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, file=sys.stderr); sys.exit(code)"
)


def _fill(store: Store, records: list[Record], wanted: int) -> int:
    """Adds records until there are so many: those of the checkout, then the fine-tuning runs' again under further
    seeds. Returns how many there are."""
    there = len(store.run_dirs())
    like = [record for record in records if record.kind == "finetune"]
    for number in range(there, wanted):
        record = records[number] if number < len(records) else like[number % len(like)]
        folder = record.folder
        assert folder is not None
        if number >= len(records):
            spec = {**record.spec, "seed": number}
            record = Record(run_id(spec), {**record.result, "spec": spec}, record.run)
        path = store.record_path(record.kind, record.id)
        path.parent.mkdir(parents=True)
        path.write_text(record.to_json(), encoding="utf-8")
        for file in record.result["files"].values():
            if (folder / file["name"]).is_file():
                shutil.copy(folder / file["name"], path.parent)
    return max(there, wanted)


def _measured(*words: str) -> dict[str, float]:
    """Wall and processor seconds, and MiB at the most, of a fresh process that runs a command."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE.format(list(words))], capture_output=True, text=True, check=True
    )
    cpu, memory = map(float, done.stderr.splitlines()[-1].split())
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu, "mib": memory}


def run(*, quick: bool) -> dict[str, Any]:
    """A row per number of records."""
    records = list(take_snapshot(Store(find_checkout() / "results")).values())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "results")
        for wanted in (len(records) + 20,) if quick else _COUNTS:
            count = _fill(store, records, wanted)
            where = f"exec.results={store.root}"
            os.sync()
            time.sleep(2.5)  # what has just been written is not remembered
            (store.root / ".index.json").unlink(missing_ok=True)
            first = _measured("status", "all", where)
            again = _measured("status", "all", where)
            show = _measured("show", store.run_dirs()[-1].name, where)
            export = _measured("export", "--dry-run", where)
            index = (store.root / ".index.json").stat().st_size / 2**20
            rows.append({"records": count, "show": show, "first": first, "status": again, "export": export,
                         "index_mib": index})  # fmt: skip
    return {"rows": rows, "load": float(Path("/proc/loadavg").read_text().split()[0])}


def table(result: dict[str, Any]) -> str:
    """The rows for a terminal: processor seconds, and for an export the memory."""
    lines = [
        f"processor seconds; load {result['load']}",
        "records   show   status all: first   then   export   its MiB   memory beside the records, MiB",
    ]
    for row in result["rows"]:
        first, then, export = row["first"]["cpu_seconds"], row["status"]["cpu_seconds"], row["export"]
        lines.append(
            f"{row['records']:7} {row['show']['cpu_seconds']:6.2f} {first:19.1f} {then:6.1f} "
            f"{export['cpu_seconds']:8.1f} {export['mib']:9.0f} {row['index_mib']:33.1f}"
        )
        if row["records"] == _AT:
            lines += [
                f"aim at {_AT}: {name} in {aim} s: {'met' if row[name]['cpu_seconds'] <= aim else 'NOT met'}, "
                f"{row[name]['cpu_seconds']:.2f} s"
                for name, aim in _AIMS.items()
            ]
    return "\n".join(lines)

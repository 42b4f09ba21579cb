"""``nora bench NAME``: runs benchmarks/NAME.py, keeps its JSON, prints its table."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from nora.runs import provenance
from nora.runs.errors import UserError
from nora.runs.files import write_atomic


def load_program(path: Path) -> Any:
    """A Python file outside the package (a benchmark, a script, an example) as a module."""
    source = importlib.util.spec_from_file_location(f"nora_program_{path.stem}", path)
    assert source is not None and source.loader is not None
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    return module


def run_benchmark(name: str, *, checkout: Path, quick: bool) -> int:
    """A benchmark is a file with ``run(*, quick) -> dict`` and ``table(result) -> str``; results/bench/NAME.json keeps
    the result of a full one."""
    folder = checkout / "benchmarks"
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if name not in names:
        raise UserError(f"NAME: given {name!r}, allowed {', '.join(names)}")
    module = load_program(folder / f"{name}.py")
    started = time.time()
    result = module.run(quick=quick)
    print(module.table(result))
    if not quick:
        import torch

        body = {
            "benchmark": name,
            "result": result,
            "seconds": time.time() - started,
            **provenance.machine("cpu", torch.get_num_threads()),
            **provenance.code_version(checkout),
            "libraries": provenance.library_versions(),
        }
        path = checkout / "results" / "bench" / f"{name}.json"
        write_atomic(path, json.dumps(body, indent=1, sort_keys=True) + "\n")
        print(path)
    return 0

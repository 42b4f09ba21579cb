"""Start-up: `nora --help`, plans and a status, and whether any of them imports torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

_COMMANDS = {
    "--help": (["--help"], 0.3),
    "plan table2 scale=paper": (["plan", "table2", "scale=paper"], 4.0),
    "plan all": (["plan", "all"], 4.0),
    "status table2": (["status", "table2"], 1.5),
}
_CODE = "import sys; from nora.cli import main; rc = main({}); print('TORCH' if 'torch' in sys.modules else 'no torch')"


def run(*, quick: bool) -> dict[str, Any]:
    """Median wall seconds of a fresh process per command."""
    rows = []
    for name, (arguments, aim) in _COMMANDS.items():
        seconds, output = [], ""
        for _ in range(1 if quick else 7):
            started = time.perf_counter()
            code = (
                _CODE.format(arguments)
                if name != "--help"
                else (
                    "import sys, runpy, atexit\n"
                    "atexit.register(lambda: print('TORCH' if 'torch' in sys.modules else 'no torch'))\n"
                    "from nora.cli import main; main(['--help'])"
                )
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            seconds.append(time.perf_counter() - started)
            output = done.stdout
        cells = next((line for line in output.splitlines() if "cells" in line), "")
        rows.append(
            {
                "command": name,
                "seconds": statistics.median(seconds),
                "aim": aim,
                "torch_imported": output.strip().endswith("TORCH") and not output.strip().endswith("no torch"),
                "note": cells.strip(),
            }
        )
    return {"rows": rows}


def table(result: dict[str, Any]) -> str:
    """The rows for a terminal."""
    lines = [f"{'nora …':28} {'median s':>9} {'aim s':>6}  torch imported"]
    for row in result["rows"]:
        aim = "" if row["aim"] is None else f"{row['aim']:.1f}"
        lines.append(f"{row['command']:28} {row['seconds']:9.3f} {aim:>6}  {row['torch_imported']}  {row['note']}")
    return "\n".join(lines)

"""A server on the loopback that plays W&B's, well or ill, with the real client before it: a part of ``nora bench
chaos``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nora.files import canonical_json
from nora.store.runs import Store
from nora.store.states import take_snapshot

MOODS = ("right", "slow", "refused", "silent", "429", "500", "nonsense", "refused later", "silent later", "429 later",
         "500 later")  # fmt: skip
"""*slow*: every answer three seconds late. *later*: it takes the run, and only then."""
BOUND_SECONDS = 45
"""How long after its record a run may end for it: the tracker waits 30 s, W&B's own processes take leave."""
_PROJECT = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
_RUN = {"id": "x", "name": "r", "displayName": "r", "description": "", "config": "{}", "sweepName": None,
        "projectId": "1", "historyLineCount": 0, "project": _PROJECT}  # fmt: skip
_ANSWER = {
    "viewer": {"id": "v", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}},
    "serverInfo": {"features": []}, "upsertBucket": {"bucket": _RUN, "inserted": True}, "model": {"bucket": None},
    "project": None, "createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []},
}  # fmt: skip
"""What W&B's client asks when a run begins, logs and ends."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, mood: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mood = mood
        self.began = False
        self.over = threading.Event()
        self.steps: set[int] = set()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *given: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self._reply({"data": _ANSWER})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        later = self.server.mood.endswith(" later")
        ill = self.server.mood.removesuffix(" later") if self.server.began or not later else "right"
        if ill == "silent":
            self.server.over.wait()
        elif ill == "refused":  # it hangs up, and takes no call from now on
            self.server.socket.close()
            self.close_connection = True
        elif ill in ("429", "500"):
            self.send_response(int(ill))
            self.send_header("content-length", "0")
            self.end_headers()
        elif ill == "nonsense":
            self._reply([None, {"data": 7}])
        else:
            if ill == "slow":
                time.sleep(3)
            self.server.steps |= {int(step) for step in re.findall(r'\\"_step\\":(\d+)', body)}
            self.server.began |= "upsertBucket" in body
            self._reply({"data": _ANSWER})

    do_PUT = do_POST

    def _reply(self, content: Any) -> None:
        answer = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@contextmanager
def served(mood: str) -> Iterator[_Server]:
    """The server; a refused one has its port and listens to nobody."""
    server = _Server(mood)
    if mood == "refused":
        server.socket.close()
    else:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        with suppress(OSError, ValueError):
            if mood != "refused":
                server.shutdown()
            server.server_close()


_PATIENT = """
import sys
from nora.cli import main
from nora.execution import tracker
tracker._INIT_SECONDS, tracker._FINISH_SECONDS = map(float, sys.argv[1:3])
sys.exit(main(sys.argv[3:]))
"""


def _run(checkout: Path, words: list[str], address: str, patience: tuple[float, float]) -> tuple[Any, float]:
    """The command, and when it had ended."""
    env = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, "-c", _PATIENT, *map(str, patience), "run", *words]
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False, timeout=600)
    return done, time.time()


def _outcome(results: Path) -> list[tuple[str, bytes]]:
    found = []
    for record in take_snapshot(store := Store(results)).values():
        name = record.result["files"]["predictions"]["name"]
        found.append((canonical_json(record.result), (store.run_dir(record.kind, record.id) / name).read_bytes()))
    return found


def _waited(results: Path, until: float) -> float:
    """Seconds between the record and the end of the process."""
    return until - max((path.stat().st_mtime for path in results.glob("runs/*/*/record.json")), default=0.0)


def moods(
    checkout: Path,
    names: tuple[str, ...] = MOODS,
    patience: tuple[float, float] = (15, 30),
    bound: float = BOUND_SECONDS,
) -> dict[str, Any]:
    """`nora run exec.wandb=online` before each, four at a time (they mostly wait): the record and the predictions are
    those of a run without W&B, at most one line tells of it, and the process ends in time after its record.
    ``patience``: the tracker's seconds for the start and the end."""
    words = ["scale=smoke", "task=cb", "method=nora", "exec.device=cpu", "exec.progress=false", "exec.threads=1"]
    with tempfile.TemporaryDirectory(prefix="nora-wandb-") as folder:
        _run(checkout, [*words, f"exec.results={folder}/none"], "http://127.0.0.1:9", patience)
        expected = _outcome(Path(folder) / "none")
        assert len(expected) == 1

        def tried(mood: str) -> dict[str, Any]:
            own = [*words, "exec.wandb=online", f"exec.results={folder}/{mood}"]
            with served(mood) as server:
                done, ended = _run(checkout, own, f"http://127.0.0.1:{server.server_port}", patience)
                steps = len(server.steps)
            waited = round(_waited(Path(folder) / mood, ended), 1)
            told, well = done.stderr.splitlines(), mood in ("right", "slow")
            found = {
                "another record": _outcome(Path(folder) / mood) != expected,
                f"exit {done.returncode}": done.returncode != 0,
                "not one line": len(told) > 1 or (not well and not any("W&B" in line for line in told)),
                "numbers did not arrive": well and not steps,
                f"{waited} s after its record": waited > bound,
            }
            wrong = [what for what, so in found.items() if so]
            return {"passed": not wrong, "waited": waited, "steps": steps, "told": told, "wrong": wrong}

        with ThreadPoolExecutor(4) as pool:
            by = dict(zip(names, pool.map(tried, names), strict=True))
    passed = sum(one["passed"] for one in by.values())
    return {"trials": len(by), "passed": passed, "bound_seconds": bound, "by": by,
            "wrong": [f"{mood}: {what}" for mood, one in by.items() for what in one.pop("wrong")]}  # fmt: skip

"""The run store: numbering, first-wins publication, what is trusted on read, what state a run is in."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nora import cli
from nora.config.spec import run_id
from nora.errors import UserError
from nora.files import DamagedFile, publish_once, read_bounded_lines, readable_json, write_atomic
from nora.kinds import read_spec
from nora.store.record import DamagedRecord, Record, read_record
from nora.store.runs import Store, read_json_lines
from nora.store.states import run_state, take_snapshot

SPEC = {"kind": "finetune", "seed": 0, "protocol": {"name": "mezo", "version": 1}}
ID = run_id(SPEC)


def _record(accuracy: float = 0.5, status: str = "done") -> Record:
    proof = {"init": "x", "passed": True, "problems": [], "modules": []}
    metrics = {"test": {"accuracy": accuracy}}
    result: dict[str, Any] = {"spec": SPEC, "status": status, "metrics": metrics, "proof": proof, "files": {}}
    if status == "diverged":
        result["diverged"] = {"step": 7, "tensor": "the loss"}
    return Record(ID, result, {"host": "h"})


def _take(root: str, count: int) -> list[int]:
    return [Store(Path(root)).new_attempt("finetune", ID).number for _ in range(count)]


def test_concurrent_threads_get_different_attempts(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = [n for part in pool.map(lambda _: _take(str(tmp_path), 5), range(8)) for n in part]
    assert sorted(numbers) == list(range(1, 41))


def test_concurrent_processes_get_different_attempts(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        numbers = [n for part in pool.starmap(_take, [(str(tmp_path), 9)] * 2) for n in part]
    assert sorted(numbers) == list(range(1, 19))


def test_the_first_to_publish_wins(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: publish_once(path, f"content {i}"), range(32)))
    assert sum(won) == 1
    assert path.read_text() == f"content {won.index(True)}"
    assert sorted(p.name for p in path.parent.iterdir()) == ["record.json"], "no temporary file is left"


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_second_record_of_a_run_is_not_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.publish_record(_record(0.5))
    assert not store.publish_record(_record(0.9))
    record = store.read("finetune", ID)
    assert record is not None and record.metrics["test"]["accuracy"] == 0.5
    assert record == _record(0.5)


def _flip(data: bytes) -> bytes:
    at = data.index(b'"accuracy"') + 3
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _edit(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        body = json.loads(data)
        change(body)
        return json.dumps(body).encode()

    return apply


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped byte": _flip,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zero-filled": lambda data: bytes(len(data)),
    "not UTF-8": lambda data: data.replace(b"h", b"\xff", 1),
    "another JSON type": lambda data: b"[]",
    "foreign schema": _edit(lambda body: body.update(schema="x")),
    "no schema": _edit(lambda body: body.pop("schema")),
    "changed metric": _edit(lambda body: body["result"]["metrics"]["test"].update(accuracy=0.99)),
    "changed spec": _edit(lambda body: body["result"]["spec"].update(seed=1)),
    "changed id": _edit(lambda body: body.update(id="0" * 16)),
    "no hash": _edit(lambda body: body.pop("result_sha256")),
    "nested without end": lambda data: b"[" * 200_000,
    "NaN metric": lambda data: data.replace(b"0.5", b"NaN"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_record_is_seen_named_and_repaired(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish_record(_record())
    path = store.record_path("finetune", ID)
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    with pytest.raises(DamagedRecord) as error:
        store.read("finetune", ID)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert run_state(store, "finetune", ID).state == "damaged"
    assert list(take_snapshot(store).values()) == []
    assert len(take_snapshot(store).damaged) == 1
    assert store.publish_record(_record(0.6)), "a valid record takes the place of a damaged one"
    assert run_state(store, "finetune", ID).state == "done" and take_snapshot(store).damaged == {}


def test_a_copied_folder_is_no_run_of_its_new_name(tmp_path: Path) -> None:
    """For one run asked for alone as for all of them: `nora run` of the other id must not call it done."""
    store, other = Store(tmp_path), "b" * 16
    store.publish_record(_record())
    shutil.copytree(store.run_dir("finetune", ID), store.run_dir("finetune", other))
    assert run_state(store, "finetune", ID).state == "done"
    found = run_state(store, "finetune", other)
    assert found.state == "damaged" and found.record is None and "(a copy?)" in found.reason
    snapshot = take_snapshot(store)
    assert list(snapshot) == [ID] and snapshot.damaged == {other: found.reason}


def test_states_of_a_run(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def state() -> tuple[str, str]:
        found = run_state(store, "finetune", ID)
        return found.state, found.reason

    assert state() == ("missing", "")
    first = store.new_attempt("finetune", ID)
    assert state() == ("running", "attempt 1")
    first.fail("RunFailed: no luck", "trace")
    assert state() == ("failed", "attempt 1: RunFailed: no luck")
    second = store.new_attempt("finetune", ID)
    assert state() == ("running", "attempt 2")
    second.fail("ValueError: again")
    store.publish_record(_record(status="diverged"))
    assert state() == ("diverged", "step 7, the loss")


def test_a_killed_process_is_failed_and_a_reused_pid_is_not_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    attempt = store.new_attempt("finetune", ID)
    owner = json.loads((attempt.path / "owner.json").read_text())
    assert owner["pid"] == os.getpid() and attempt.is_alive()
    (attempt.path / "owner.json").write_text(json.dumps({**owner, "process_started": "1"}))
    assert not attempt.is_alive(), "this pid lives, but it is another process"
    (attempt.path / "owner.json").write_text(json.dumps({**owner, "pid": 2**22 + 1}))
    assert run_state(store, "finetune", ID).state == "failed"
    assert "killed?" in run_state(store, "finetune", ID).reason
    (attempt.path / "owner.json").write_text("{")
    assert run_state(store, "finetune", ID).state == "failed"


def test_on_another_host_the_heartbeat_decides(tmp_path: Path) -> None:
    store = Store(tmp_path)
    attempt = store.new_attempt("finetune", ID)
    (attempt.path / "owner.json").write_text(
        json.dumps({"host": socket.gethostname() + "-other", "pid": 1, "process_started": "1"})
    )
    assert attempt.is_alive()
    old = time.time() - 15 * 8 - 1
    os.utime(attempt.path / "heartbeat", (old, old))
    assert not attempt.is_alive()
    attempt.beat()
    assert attempt.is_alive()


def test_the_heartbeat_is_read_by_the_clock_that_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose own clock is 180 s ahead must not start a second attempt."""
    attempt = Store(tmp_path).new_attempt("finetune", ID)
    owner = json.loads((attempt.path / "owner.json").read_text())
    (attempt.path / "owner.json").write_text(json.dumps({**owner, "host": "elsewhere"}))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 180)
    assert attempt.is_alive()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a PID namespace")
def test_a_pid_of_another_namespace_or_boot_is_not_asked_for(tmp_path: Path) -> None:
    """A container's pid 1 is not this machine's; the same host after a reboot has other processes."""
    code = f"from nora.store.runs import Store; from pathlib import Path; Store(Path({str(tmp_path)!r}))"
    code += f".new_attempt('finetune', {ID!r})"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    subprocess.run(command, check=True, capture_output=True)
    (attempt,) = Store(tmp_path).attempts("finetune", ID)
    owner = json.loads((attempt.path / "owner.json").read_text())
    assert owner["host"] == socket.gethostname() and owner["pid"] == 1
    assert attempt.is_alive(), "nobody here can ask for its process: the heartbeat is fresh"
    (attempt.path / "owner.json").write_text(json.dumps({**owner, "pid": os.getpid(), "process_started": "1"}))
    assert attempt.is_alive()
    own = {"pid_namespace": os.readlink("/proc/self/ns/pid"), "boot": "before"}
    (attempt.path / "owner.json").write_text(json.dumps({**owner, **own}))
    assert attempt.is_alive()
    old = time.time() - 15 * 8 - 1
    os.utime(attempt.path / "heartbeat", (old, old))
    assert not attempt.is_alive()


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT and some network file systems: the first still wins, and nothing is left over."""

    def refuse(*given: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "deep" / "record.json"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: publish_once(path, f"content {i}"), range(32)))
    assert sum(won) == 1 and path.read_text() == f"content {won.index(True)}"
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]
    store = Store(tmp_path / "store")
    assert store.publish_record(_record(0.5)) and not store.publish_record(_record(0.9))
    store.record_path("finetune", ID).write_bytes(b"")
    assert run_state(store, "finetune", ID).state == "damaged"
    assert store.publish_record(_record(0.6))


def test_a_newer_versions_record_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    store.publish_record(_record())
    path = store.record_path("finetune", ID)
    path.write_bytes(_edit(lambda body: body.update(schema=2))(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(UserError, match="written by a newer version: its schema is 2, this version reads 1"):
        store.publish_record(_record(0.6))
    for code, *words in ((0, "plan", "fig1"), (0, "status", "fig1"), (2, "show", ID)):
        assert cli.main([*map(str, words), f"exec.results={tmp_path}"]) == code
        assert "written by a newer version" in capsys.readouterr().err
    assert path.read_bytes() == before and not (path.parent / "attempts").exists()


def test_every_committed_record_has_the_id_of_its_spec(checkout: Path) -> None:
    """From the spec as it is written and as this version reads it."""
    paths = sorted((checkout / "results").glob("runs/*/*/record.json"))
    assert len(paths) > 100
    for path in paths:
        spec = json.loads(path.read_text(encoding="utf-8"))["result"]["spec"]
        assert run_id(spec) == run_id(read_spec(spec)) == path.parent.name


def test_a_torn_journal_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_json_lines(path) == []
    lines = [{"phase": "train", "step": step, "total": 2} for step in (1, 2)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"ste')
    assert read_json_lines(path) == lines


def test_another_runs_journal_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that is swapped in says whose it is; those of before they did are read as they were."""
    from nora.execution.progress import Reporter
    from nora.execution.tracker import Tracker
    from nora.kinds.parts.recipe import Update

    store = Store(tmp_path)
    own, other = (store.new_attempt("finetune", identity * 16) for identity in "01")
    for step, attempt in ((1, own), (2, other)):
        with Reporter(attempt, Tracker(), lambda update: None) as report:
            report(Update("train", step, 2, {}))
    assert [line["step"] for line in read_json_lines(own.journal)] == [1]
    own.journal.write_bytes(other.journal.read_bytes())
    assert read_json_lines(own.journal) == [] and "foreign (of run 1111111111111111" in caplog.text
    later = store.new_attempt("finetune", "1" * 16)
    later.journal.write_bytes(other.journal.read_bytes())
    assert read_json_lines(later.journal) == [], "another attempt's"
    own.journal.write_text("".join(other.journal.read_text().splitlines(keepends=True)[1:]))
    assert [line["step"] for line in read_json_lines(own.journal)] == [2]


def test_files_are_checked_against_the_record(tmp_path: Path) -> None:
    from nora.files import sha256_bytes

    store = Store(tmp_path)
    files = {
        "predictions": {"name": "p.gz", "sha256": sha256_bytes(b"right")},
        "adapter": {"name": "a.safetensors", "sha256": sha256_bytes(b"adapter")},
    }
    record = Record(ID, {**_record().result, "files": files}, {})
    assert [line.split(": ")[1] for line in store.verify_files(record)] == ["missing (predictions)"]
    store.publish_file("finetune", ID, "p.gz", b"right")
    assert store.verify_files(record) == [], "an adapter that is not kept is no problem"
    (store.run_dir("finetune", ID) / "p.gz").write_bytes(b"wrong")
    assert "not what its hash says (predictions)" in store.verify_files(record)[0]
    store.publish_file("finetune", ID, "p.gz", b"right")
    assert store.verify_files(record) == [], "publishing repairs a damaged file"
    (store.run_dir("finetune", ID) / "a.safetensors").write_bytes(b"other")
    assert "(adapter)" in store.verify_files(record)[0]


def test_a_heartbeat_from_the_future_is_none(tmp_path: Path) -> None:
    attempt = Store(tmp_path).new_attempt("finetune", "0" * 16)
    owner = json.loads((attempt.path / "owner.json").read_text())
    (attempt.path / "owner.json").write_text(json.dumps({**owner, "host": "elsewhere"}))
    attempt.beat()
    assert attempt.is_alive()
    for years in (1, 50):
        ahead = time.time() + years * 365 * 86400
        os.utime(attempt.path / "heartbeat", (ahead, ahead))
        assert not attempt.is_alive()


def test_bombs_are_one_line_and_never_in_memory_whole(tmp_path: Path) -> None:
    packed, long, pipe = tmp_path / "bomb.gz", tmp_path / "long.jsonl", tmp_path / "pipe"
    with gzip.open(packed, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    with long.open("wb") as plain:
        plain.write(b'{"a": 1}\n')
        plain.truncate(1 << 30)  # a line of 1 GB, sparse
    os.mkfifo(pipe)
    tracemalloc.start()
    for path, line in ((packed, "line 1: more than"), (long, "line 2: more than"), (pipe, "not a regular file")):
        with pytest.raises(DamagedFile, match=line):
            list(read_bounded_lines(path))
    with pytest.raises(DamagedFile, match="more than 50 bytes so far"):
        packed.write_bytes(gzip.compress(b"1234567\n" * 100))
        list(read_bounded_lines(packed, largest=50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128 << 20
    whole = tmp_path / "whole.gz"
    whole.write_bytes(gzip.compress(b"1\n\n2\n"))
    assert list(read_bounded_lines(whole)) == [b"1", b"", b"2"]
    whole.write_bytes(whole.read_bytes()[:-12])
    with pytest.raises(DamagedFile, match="unreadable"):
        list(read_bounded_lines(whole))


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("nowhere")]
)
def test_a_file_of_a_record_that_is_none_is_a_problem_even_where_it_need_not_be_kept(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    """An adapter that was not kept is no problem; something else in its place is, and is moved out of the way."""
    store, name = Store(tmp_path), "adapter.00000000.safetensors"
    result = {"spec": {"kind": "finetune"}, "files": {"adapter": {"name": name, "sha256": "0" * 64}}}
    record = Record("0" * 16, result, {})
    assert store.verify_files(record) == []
    path = store.run_dir("finetune", record.id) / name
    path.parent.mkdir(parents=True)
    make(path)
    assert store.verify_files(record) == [f"{path}: not a regular file (adapter)"]
    store.drop_damaged_file("finetune", record.id, name, "0" * 64)
    assert store.verify_files(record) == []
    make(path)
    store.publish_file("finetune", record.id, name, b"content")
    assert path.read_bytes() == b"content" and not path.is_symlink()


def test_another_runs_record_does_not_stand_in_the_way(checkout: Path, tmp_path: Path) -> None:
    first, second = sorted((checkout / "results").glob("runs/finetune/*/record.json"))[:2]
    record = read_record(first)
    assert record is not None
    store = Store(tmp_path)
    path = store.record_path(record.kind, record.id)
    path.parent.mkdir(parents=True)
    shutil.copy(second, path)
    assert store.publish_record(record)
    assert store.read(record.kind, record.id) == record
    assert not store.publish_record(record)


def test_a_record_is_a_text_for_people() -> None:
    curve = [0.1234567890123456 * i for i in range(50)]
    value = {
        "proof": {"modules": [{"rho": 1.5, "name": "q [0]"}, {"rho": 1e-7, "name": "v {1}"}], "problems": []},
        "losses": curve,
        "libraries": {f"library-{i}": "1.0" for i in range(30)},
        "é\n": None,
    }
    text = readable_json(value)
    assert json.loads(text) == value
    lines = text.splitlines()
    assert lines[0] == "{" and lines[1] == ' "libraries": {' and lines[2] == '  "library-0": "1.0",'
    assert ' "losses": ' + json.dumps(curve) + "," in lines, "a curve is a line, however long"
    module = lines.index('   {"name": "q [0]", "rho": 1.5},')
    assert lines[module + 1 :] == [
        '   {"name": "v {1}", "rho": 1e-07}',
        "  ],",
        '  "problems": []',
        " },",
        ' "é\\n": null',
        "}",
    ]
    assert readable_json([]) == "[]\n" and readable_json([[]]) == "[[]]\n"
    with pytest.raises(ValueError, match="JSON compliant"):
        readable_json({"loss": [1.0, float("nan")]})

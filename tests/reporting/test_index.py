"""The memory beside the records: it makes `status` faster and changes no word of it, whatever became of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from nora import cli
from nora.config.compose import compose_config, remembering
from nora.store import index, record, states
from nora.store.index import NAME, Index
from nora.store.runs import Store
from nora.store.states import State, take_snapshot

Out = pytest.CaptureFixture[str]
STATUS = ["status", "table2", "scale=mini", "task=cb", "seed=0,1"]


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files just written count as settled (else the memory of a test would stay empty)."""
    monkeypatch.setattr(index, "_SETTLED_NS", -(10**12))


def _seen(store: Store) -> Index:
    """The store's memory after one look at it."""
    first = Index(store.root)
    take_snapshot(store, first)
    first.save()
    return Index(store.root)


def test_what_was_seen_whole_is_not_checked_again_and_says_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = take_snapshot(store)
    again = _seen(store)
    monkeypatch.setattr(states, "run_state", lambda *given: pytest.fail("checked again"))
    seen = take_snapshot(store, again)
    assert dict(seen) == dict(checked) and [r.folder for r in seen.values()] == [r.folder for r in checked.values()]
    assert [r.run_is_hashed for r in seen.values()] == [r.run_is_hashed for r in checked.values()]


def _damaged(store: Store, one: Path) -> None:
    (one / "a.safetensors").write_bytes(b"else")


def _hand(store: Store, one: Path) -> None:
    text = (one / "record.json").read_text()
    (one / "record.json").write_text(text.replace('"gold_nll": 4.0', '"gold_nll": 5.0'))


def _touched_back(store: Store, one: Path) -> None:
    """As many bytes, the time of before."""
    before = (one / "record.json").stat()
    _hand(store, one)
    os.utime(one / "record.json", ns=(before.st_atime_ns, before.st_mtime_ns))


def _contested(store: Store, one: Path) -> None:
    (one / "record-0.json").write_text("{}")


@pytest.mark.parametrize("change", [_damaged, _hand, _touched_back, _contested])
def test_what_changed_is_checked_again(change: Callable[[Store, Path], None], store: Store) -> None:
    again = _seen(store)
    change(store, store.run_dirs()[0])
    seen, checked = take_snapshot(store, again), take_snapshot(store)
    assert seen.troubles == checked.troubles and len(checked.troubles) == 1
    assert len(seen) == len(checked)


def test_what_a_link_leads_to_is_checked_each_time(store: Store) -> None:
    (store.root / "elsewhere").write_bytes(b"kept")
    (store.run_dirs()[0] / "a.safetensors").symlink_to(store.root / "elsewhere")
    again = _seen(store)
    assert not take_snapshot(store).troubles
    (store.root / "elsewhere").write_bytes(b"else")
    assert take_snapshot(store, again).troubles == take_snapshot(store).troubles != []


def test_what_has_just_changed_is_not_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change once more within the same time stamp."""
    monkeypatch.undo()
    again = _seen(store)
    assert not any(again.saw_whole(folder) for folder in store.run_dirs())


def _rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    draw = random.Random(1)
    for _ in range(3):
        data[draw.randrange(len(data))] ^= 1
    path.write_bytes(data)


def _wrong_state(path: Path) -> None:
    """Right but for its hash: the run that is damaged is said to be whole."""
    body = json.loads(path.read_text())
    body["runs"] |= {index._key(folder): index._signature(folder) for folder in Store(path.parent).run_dirs()}
    path.write_text(json.dumps(body))


def _in_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.unlink()
        make(path)

    return put


SPOILED: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "rot": _rot,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "null": lambda path: path.write_text("null"),
    "types": lambda path: path.write_text('{"version": 1, "runs": [], "composed": null}'),
    "deep": lambda path: path.write_text('{"runs": ' + "[" * 9_000 + "]" * 9_000 + "}"),
    "another version": lambda path: path.write_text('{"version": "0", "runs": {}, "composed": {}, "sha256": ""}'),
    "changed by hand": _wrong_state,
    "folder": _in_place(Path.mkdir),
    "pipe": _in_place(os.mkfifo),
    "link": _in_place(lambda path: path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_memory_that_is_none_costs_time_alone(how: str, store: Store, capsys: Out) -> None:
    (store.run_dirs()[0] / "record.json").write_text("{}")
    words = [*STATUS, f"exec.results={store.root}"]
    assert cli.main(words) == 0
    expected = capsys.readouterr()
    SPOILED[how](store.root / NAME)
    for _ in range(2):
        assert cli.main(words) == 0
        assert capsys.readouterr() == expected


def test_a_store_that_cannot_be_written_is_read(store: Store, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(index, "write_atomic", refused)
    assert cli.main([*STATUS, f"exec.results={store.root}"]) == 0
    assert not (store.root / NAME).exists() and capsys.readouterr().err == ""
    assert cli.main([*STATUS, f"exec.results={store.root / 'not there'}"]) == 0
    assert not (store.root / "not there").exists()


def test_a_plan_with_the_memory_is_the_one_without(store: Store, capsys: Out) -> None:
    where = ["plan", "table2", "scale=smoke", f"exec.results={store.root}"]
    said = []
    for _ in range(3):  # nothing there, what the first one composed, the same again
        assert cli.main(where) == 0
        said.append(capsys.readouterr().out)
    (store.root / NAME).unlink()
    assert cli.main(where) == 0
    assert {*said, capsys.readouterr().out} == {said[0]} and said[0].startswith("table2 at scale=smoke")


def test_no_table_and_no_launch_asks_it(store: Store, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    _seen(store)
    monkeypatch.setattr(Index, "saw_whole", lambda *given: pytest.fail("asked"))
    where = [*STATUS[1:], f"exec.results={store.root}"]
    assert cli.main(["collate", *where]) == 0
    assert cli.main(["verify", *where]) in (0, 1)
    assert cli.main(["launch", *where, "--dry-run"]) == 0


def _save_often(root: Path, seed: int) -> None:
    store, draw = Store(root), random.Random(seed)
    for _ in range(20):
        mine = Index(root)
        mine.composed[str(draw.random())] = "{}"
        take_snapshot(store, mine)
        mine.save()


def test_several_that_write_it_at_once_leave_one_that_is_whole(store: Store) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_save_often, args=(store.root, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        seen = Index(store.root)
        assert not (store.root / NAME).exists() or seen._loaded, "a part of one was read"
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert all(Index(store.root).saw_whole(folder) for folder in store.run_dirs())
    assert not list(store.root.glob(".tmp-*"))


def test_what_was_composed_is_recalled_until_a_file_changes(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from nora.config import compose

    conf = tmp_path / "conf"
    shutil.copytree(checkout / "conf", conf)
    words = ["method=lora", "scale=smoke"]
    expected = {key: value for key, value in compose_config(conf, words).items() if key != "exec"}
    known: dict[str, object] = {}
    with remembering(known):
        assert compose_config(conf, words) == expected
    with remembering(json.loads(json.dumps(known))), monkeypatch.context() as patch:
        patch.setattr(compose, "_composed", lambda *given: pytest.fail("composed again"))
        assert compose_config(conf, words) == expected
    path = conf / "method" / "lora.yaml"
    path.write_text(path.read_text().replace("rank: 8", "rank: 4"))
    with remembering(known):
        assert compose_config(conf, words)["method"]["rank"] == 4
    assert len(known) == 1, "what the files no longer say is dropped"


def test_nothing_of_the_surroundings_is_remembered(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    words = [*STATUS, f"exec.results={store.root}", "exec.wandb_project=${oc.env:HF_TOKEN}"]
    cli.main(words)
    assert (store.root / NAME).is_file() or "exec.wandb_project" in capsys.readouterr().err
    cli.main([*STATUS, f"exec.results={store.root}", "exec.profile=${oc.env:HF_TOKEN}"])
    assert (store.root / NAME).is_file()
    assert "hf_secret" not in (store.root / NAME).read_text()


def test_a_state_of_the_memory_is_a_state(store: Store) -> None:
    """A diverged record is remembered as what it is."""
    folder = store.run_dirs()[0]
    read = record.read_record(folder / "record.json")
    assert read is not None
    result = {**read.result, "status": "diverged", "diverged": {"step": 3, "tensor": "the loss"}}
    (folder / "record.json").write_text(record.Record(read.id, result, read.run).to_json())
    seen = take_snapshot(store, _seen(store))
    cell = next(record for record in seen.values() if record.id == read.id)
    assert states._ended(cell).state is State.DIVERGED

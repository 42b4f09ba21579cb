"""``nora merge``: another store's records come in verified; where two results of one run differ both stay."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nora import cli
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import take_snapshot

Out = pytest.CaptureFixture[str]
RUN = ["run", "scale=smoke", "task=cb", "exec.device=cpu", "exec.progress=false"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the runs of seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("theirs")
    for seed in (0, 1):
        assert cli.main([*RUN, "method=lora", f"seed={seed}", f"exec.results={folder}"]) == 0
    return folder


def _records(folder: Path) -> list[Record]:
    return list(take_snapshot(Store(folder)).values())


def _changed(record: Record) -> Record:
    """Another valid result of the same run."""
    result = copy.deepcopy(dict(record.result))
    result["metrics"]["majority_accuracy"] = 0.25
    return replace(record, result=result)


def test_what_is_missing_is_added_with_its_files_and_a_second_time_nothing(
    theirs: Path, tmp_path: Path, capsys: Out
) -> None:
    own = tmp_path / "own"
    words = ["merge", str(theirs), f"exec.results={own}"]
    assert cli.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would be added") == 2 and not own.exists()
    assert cli.main(words) == 0
    assert "2 added, 0 same" in capsys.readouterr().out
    assert cli.main(words) == 0
    assert "0 added, 2 same, 0 differs, 0 left" in capsys.readouterr().out
    for record in _records(theirs):
        here = Store(own).read(record.kind, record.id)
        assert here is not None and here.to_json() == record.to_json() and Store(own).verify_files(record) == []
    targets = ["table2", "scale=smoke", "task=cb", "method=lora", "seed=0", f"exec.results={own}"]
    assert cli.main(["verify", *targets]) == 0


def test_where_two_results_differ_both_stay_and_are_told_of(theirs: Path, tmp_path: Path, capsys: Out) -> None:
    own = Store(tmp_path / "own")
    shutil.copytree(theirs, own.root)
    record = _records(theirs)[0]
    ours = _changed(record)
    path = own.record_path(record.kind, record.id)
    path.write_text(ours.to_json())
    words = ["merge", str(theirs), f"exec.results={own.root}"]
    assert cli.main([*words, "--dry-run"]) == 1 and own.others(record.kind, record.id) == []
    assert "theirs would be kept beside" in capsys.readouterr().out
    for _ in range(2):
        assert cli.main(words) == 1
        assert f"{record.id} differs from the record here" in capsys.readouterr().out
        assert path.read_text() == ours.to_json(), "what was here is not replaced"
        (other,) = own.others(record.kind, record.id)
        assert other.name == f"record-{record.result_hash[:8]}.json" and other.read_text() == record.to_json()
    place = f"exec.results={own.root}"
    for verb in ("plan", "status"):
        assert cli.main([verb, "table2", "scale=smoke", "task=cb", place]) == 0
        assert "two results of one run" in capsys.readouterr().err
    assert cli.main(["verify", "table2", "scale=smoke", "task=cb", place]) == 1
    assert f"beside it {other.name}" in capsys.readouterr().out


def test_what_is_not_valid_there_is_left_and_what_is_damaged_here_is_made_whole(
    theirs: Path, tmp_path: Path, capsys: Out
) -> None:
    one, two = _records(theirs)
    there, own = Store(tmp_path / "there"), Store(tmp_path / "own")
    shutil.copytree(theirs, there.root)
    shutil.copytree(theirs, own.root)
    there.record_path(one.kind, one.id).write_text("{")
    own.record_path(two.kind, two.id).write_text("{")
    words = ["merge", str(there.root), f"exec.results={own.root}"]
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert f"{one.id} left: " in out and "not valid JSON" in out and f"{two.id} added" in out
    assert {r.id for r in _records(own.root)} == {one.id, two.id}
    (predictions,) = own.run_dir(one.kind, one.id).glob("predictions*")
    predictions.unlink()
    assert cli.main(["merge", str(theirs), f"exec.results={own.root}"]) == 0
    assert f"{one.id} made whole" in capsys.readouterr().out and predictions.is_file()


@pytest.mark.parametrize("name", ["../../../../escaped", "/tmp/escaped"])
def test_a_file_may_not_leave_its_folder(name: str, theirs: Path, tmp_path: Path, capsys: Out) -> None:
    """A record made by somebody who means harm: whole by its own hash."""
    there, own = Store(tmp_path / "there"), Store(tmp_path / "own")
    shutil.copytree(theirs, there.root)
    record = _records(theirs)[0]
    result = json.loads(json.dumps(record.result))
    result["files"]["predictions"]["name"] = name
    there.record_path(record.kind, record.id).write_text(replace(record, result=result).to_json())
    assert cli.main(["merge", str(there.root), f"exec.results={own.root}"]) == 1
    assert f"{record.id} left: " in capsys.readouterr().out and own.read(record.kind, record.id) is None


def test_a_newer_record_is_left_and_named(theirs: Path, tmp_path: Path, capsys: Out) -> None:
    there = Store(tmp_path / "there")
    shutil.copytree(theirs, there.root)
    record = _records(theirs)[0]
    body = json.loads(record.to_json())
    there.record_path(record.kind, record.id).write_text(json.dumps({**body, "schema": 99}))
    assert cli.main(["merge", str(there.root), f"exec.results={tmp_path / 'own'}"]) == 1
    assert "written by a newer version" in capsys.readouterr().out


def test_what_is_no_other_store_is_the_users_error(theirs: Path, tmp_path: Path, capsys: Out) -> None:
    for folder, part in ((tmp_path, "has no runs/"), (tmp_path / "nowhere", "has no runs/"), (theirs, "itself")):
        assert cli.main(["merge", str(folder), f"exec.results={theirs}"]) == 2
        err = capsys.readouterr().err
        assert part in err and err.count("\n") == 1

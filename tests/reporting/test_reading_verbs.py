"""trace, diff, verify and export over made-up records: what is told is what the records hold."""

from __future__ import annotations

import csv
import io
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from nora import cli
from nora.config.spec import run_id
from nora.reporting.exports import export, flat_record
from nora.reporting.provenance import differences
from nora.store.record import Record, read_record
from nora.store.runs import Store
from nora.store.states import take_snapshot
from synthetic import ADAPTER_SHA256

Out = pytest.CaptureFixture[str]
WORDS = ["scale=mini", "task=cb", "seed=0,1"]
# What method_comparison/processing.py of huggingface/peft (commit 0006753) reads of each file.
PEFT_READS = {
    "run_info": ("experiment_name", "train_config", "peft_config", "total_time", "peft_branch", "created_at"),
    "train_info": (
        "status", "metrics", "accelerator_memory_reserved_avg", "accelerator_memory_max",
        "accelerator_memory_reserved_99th", "train_time", "file_size",
    ),
    "meta_info": ("package_info", "system_info"),
}  # fmt: skip
PEFT_METRICS = ("test accuracy", "train loss", "train samples", "train total tokens")


def _ids(store: Store) -> list[str]:
    return sorted(take_snapshot(store))


def test_trace_of_a_curve_a_panel_and_a_start(tmp_path: Path, capsys: Out) -> None:
    """Without a record each run is missing, and its command makes exactly the id that is traced."""
    for target, cell, runs in (("fig1", "GD, small start", 1), ("fig4", "a", 31), ("deployment", "pissa", 2)):
        assert cli.main(["trace", target, cell, f"exec.results={tmp_path}", "--json"]) == 0
        traced = json.loads(capsys.readouterr().out)
        assert len(traced["runs"]) == runs, cell
        assert {run["state"] for run in traced["runs"]} == {"missing"}
        assert all(run["command"].startswith("nora run ") for run in traced["runs"])
    assert cli.main(["trace", "fig1", "GD, smal start", f"exec.results={tmp_path}"]) == 2
    assert "did you mean GD, small start/a?" in capsys.readouterr().err


def test_trace_of_a_cell_has_its_seeds_and_how_they_differ(store: Store, capsys: Out) -> None:
    assert cli.main(["trace", "table2", "nora/cb", *WORDS, f"exec.results={store.root}", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["seed"] for run in runs] == [0, 1] and {run["state"] for run in runs} == {"done"}
    for run in runs:
        record = store.read("finetune", run["id"])
        assert record is not None and record.metrics["test"] == run["test"] and record.spec["seed"] == run["seed"]
        for pair in run["difference"]:
            group, key = pair.split("=")[0].split(".")
            assert pair == f"{group}.{key}={record.spec[group][key]}"
        assert "method.name=nora" in run["difference"], "no method has most of the runs"
        assert f"method.xi={record.spec['method']['xi']}" in run["command"]


def test_trace_takes_a_cell_as_it_is_printed_and_says_what_it_does_not_know(store: Store, capsys: Out) -> None:
    words = [*WORDS, f"exec.results={store.root}"]
    told = []
    for cell in ("nora_plus/cb", "NoRA+/CB", "NoRA+,CB"):
        assert cli.main(["trace", "table2", cell, *words]) == 0
        told.append(capsys.readouterr().out.splitlines()[1:])
    assert told[0] == told[1] == told[2] and told[0][0].startswith("settings protocol.batch_size=")
    assert all(len(line) <= 80 or line.startswith("  repeat ") for line in told[0]), "a terminal of eighty columns"
    for target, cell, words_said in (
        ("table2", "nora_pluss/cb", "did you mean nora_plus/cb?"),
        ("fig5", "x", "which has no runs of its own"),
        ("all", "x", "required a single one, such as table2"),
    ):
        assert cli.main(["trace", target, cell, f"exec.results={store.root}"]) == 2
        said = capsys.readouterr().err
        assert words_said in said and said.count("\n") == 1


def test_show_fits_a_terminal_and_leaves_the_hashes_to_json(checkout: Path, capsys: Out) -> None:
    """Of a real record of each kind: every number is there, hashes of files are counted, curves say their length."""
    results = Store(checkout / "results")
    for kind in ("finetune", "factorize", "dreambooth", "deployment"):
        identity = sorted((results.root / "runs" / kind).iterdir())[0].name
        assert cli.main(["show", identity, f"exec.results={results.root}"]) == 0
        text = capsys.readouterr().out
        path = str(results.run_dir(kind, identity))
        assert all(len(line) <= 100 for line in text.splitlines() if path not in line), kind
        record = results.read(kind, identity)
        assert record is not None and str(record.run["commit"]) in text and "UTC" in text
        hashes = [file["sha256"] for file in record.result["files"].values()]
        assert not any(h in text for h in hashes)


def test_diff_names_what_differs_and_nothing_else(store: Store, capsys: Out) -> None:
    one = store.read("finetune", _ids(store)[0])
    assert one is not None and differences(one, one) == {}
    spec = {**one.spec, "seed": 7}
    metrics = {**one.metrics, "test": {**one.metrics["test"], "accuracy": 0.0625}}
    other = Record(run_id(spec), {**one.result, "spec": spec, "metrics": metrics}, {**one.run, "threads": 2})
    assert differences(one, other) == {
        "spec": {"seed": (one.spec["seed"], 7)},
        "metrics": {"test.accuracy": (one.metrics["test"]["accuracy"], 0.0625)},
        "run": {"threads": ("absent", 2)},
    }
    store.publish_record(other)
    assert cli.main(["diff", one.id, other.id, f"exec.results={store.root}"]) == 0
    text = capsys.readouterr().out
    assert f"seed  {one.spec['seed']} → 7" in text and "(-0." in text
    assert cli.main(["diff", one.id, "zzz", f"exec.results={store.root}"]) == 2
    assert "0 records of" in capsys.readouterr().err


def test_verify_compares_the_artefacts_with_the_records(tmp_path: Path, capsys: Out) -> None:
    words = ["deployment", f"exec.results={tmp_path}"]
    assert cli.main(["collate", *words]) == 0 and cli.main(["verify", *words]) == 0
    table = tmp_path / "tables" / "deployment.md"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("missing", "0.1", 1), encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["verify", *words]) == 1
    assert f"{table}: not what the records give; `nora collate deployment`" in capsys.readouterr().out
    table.unlink()
    assert cli.main(["verify", *words]) == 0, "a file that was not made is no problem"


def _exported(store: Store) -> dict[str, bytes]:
    return {name: b"".join(parts) for name, parts in export(take_snapshot(store).values(), store)}


def test_export_keeps_no_record(store: Store) -> None:
    """While one is read those before it are gone; a column of several types is text, of whole and broken numbers a
    float, in both files."""
    import pandas as pd

    alive: list[weakref.ref[Record]] = []

    def one_by_one() -> Iterator[Record]:
        for number, folder in enumerate(store.run_dirs()):
            read = read_record(folder / "record.json")
            assert read is not None
            run = {
                **read.run,
                "cpus": 2 + number,
                "machine": "m",
                "extra": [True, 1, 2.5, "=x", 7][number % 5],
                "n": 10**number,
            }
            run["half"] = 1 if number % 2 else 0.5
            made = Record(read.id, read.result, run)
            del read
            alive.append(weakref.ref(made))
            yield made
            del made
            assert sum(ref() is not None for ref in alive) <= 1

    files = {name: b"".join(parts) for name, parts in export(one_by_one(), store)}
    assert len(alive) > 5
    rows = list(csv.DictReader(io.StringIO(files["records.csv"].decode())))
    frame = pd.read_parquet(io.BytesIO(files["records.parquet"]))
    assert [row["run.extra"] for row in rows[:5]] == ["True", "1", "2.5", "'=x", "7"]
    assert list(frame["run.extra"][:5]) == ["True", "1", "2.5", "=x", "7"]
    assert [row["run.half"] for row in rows[:2]] == ["0.5", "1.0"] and frame["run.half"].dtype == float
    assert frame["run.cpus"].dtype == int and frame["proof.passed"].dtype == bool
    assert list(frame["run.n"]) == [str(10**number) for number in range(len(alive))], "more than 64 bits: text"


def test_export_as_csv_and_parquet_hold_every_number(store: Store) -> None:
    import pandas as pd

    snapshot = take_snapshot(store)
    files = _exported(store)
    assert _exported(store) == files, "the same bytes again"
    rows = list(csv.DictReader(io.StringIO(files["records.csv"].decode())))
    frame = pd.read_parquet(io.BytesIO(files["records.parquet"])).set_index("id")
    assert [row["id"] for row in rows] == sorted(snapshot) == list(frame.index)
    for row in rows:
        record = snapshot[row["id"]]
        assert float(row["metrics.test.accuracy"]) == record.metrics["test"]["accuracy"]
        assert frame.loc[record.id, "metrics.test.accuracy"] == record.metrics["test"]["accuracy"]
        assert row["spec.method.name"] == record.spec["method"]["name"] and row["spec.seed"] == str(record.spec["seed"])
        assert set(flat_record(record)) <= {"id", *frame.columns}


def test_export_for_peft_has_what_pefts_own_reader_asks_for(store: Store) -> None:
    files = {name: data for name, data in _exported(store).items() if name.startswith("peft/")}
    assert len(files) == len(_ids(store))
    for data in files.values():
        body = json.loads(data)
        for part, keys in PEFT_READS.items():
            assert set(keys) <= set(body[part]), part
        assert set(PEFT_METRICS) <= set(body["train_info"]["metrics"][-1])
        assert body["run_info"]["train_config"]["model_id"] == "opt_mini"
        assert {f"{n}-version" for n in ("peft", "transformers", "datasets", "torch", "bitsandbytes")} <= set(
            body["meta_info"]["package_info"]
        )


def test_a_card_for_each_adapter_that_is_kept(store: Store, tmp_path: Path, capsys: Out) -> None:
    identity = _ids(store)[0]
    folder = store.run_dir("finetune", identity)
    (folder / "a.safetensors").write_bytes(b"kept")
    assert cli.main(["export", f"exec.results={store.root}", "--out", str(tmp_path / "out")]) == 0
    (card,) = (tmp_path / "out" / "cards").iterdir()
    text = card.read_text(encoding="utf-8")
    assert card.stem == identity and text.startswith("---\nlibrary_name: peft\n")
    assert ADAPTER_SHA256 in text
    (folder / "a.safetensors").write_bytes(b"another")
    assert list(take_snapshot(store).damaged) == [identity], "what lies there is not what the record lists"
    (tmp_path / "file").write_text("")
    assert cli.main(["export", f"exec.results={store.root}", "--out", str(tmp_path / "file")]) == 2
    assert "which is a file" in capsys.readouterr().err


def test_verify_compares_a_curve_with_the_value_reported_from_it(checkout: Path) -> None:
    from nora.store.verify import verify_record

    real = Store(checkout / "results")
    record = next(r for r in take_snapshot(real).values() if r.spec["kind"] == "factorize" and "trace" in r.metrics)
    assert verify_record(real, record) == []
    final = {**record.metrics["final"], "error": 1e-16}
    better = Record(record.id, {**record.result, "metrics": {**record.metrics, "final": final}}, record.run)
    (problem,) = verify_record(real, better)
    assert problem.startswith(f"{record.id}: the curve of error ends at ") and problem.endswith(" 1e-16")


def test_verify_compares_the_choice_with_the_search_it_follows_from(checkout: Path, tmp_path: Path) -> None:
    """A choice changed by hand would choose the runs of whole tables."""
    import shutil

    from nora.reporting.collation import audit
    from nora.tables.target import load_target

    shutil.copytree(checkout / "conf", tmp_path / "conf")
    for name in ("data", "assets"):
        (tmp_path / name).symlink_to(checkout / name)
    snapshot = take_snapshot(Store(checkout / "results"))
    target = load_target(tmp_path, "tuning")
    assert audit(target, snapshot, tmp_path / "results") == []
    path = tmp_path / "conf" / "chosen" / "table2.mini.yaml"
    path.write_text(path.read_text().replace("protocol.lr: 0.03", "protocol.lr: 0.01"))
    (problem,) = audit(target, snapshot, tmp_path / "results")
    assert problem.startswith(f"{path}: not what the records give")
    assert audit(target, snapshot, tmp_path / "another" / "store") == [], "of other records it was not made"

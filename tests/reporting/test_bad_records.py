"""Whatever stands in the store: a named state in the table or one clear line, never an average, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nora import cli
from nora.config.spec import run_id, spec_dict
from nora.errors import UserError
from nora.files import canonical_json, sha256_bytes
from nora.reporting.collation import build_artefact
from nora.reporting.document import Document, Entry, to_csv
from nora.reporting.ledger import read_rows
from nora.store.record import DamagedRecord, Record, parse_record, read_record
from nora.store.runs import Store
from nora.store.states import take_snapshot
from nora.tables.choice import read_chosen
from nora.tables.methods import Table, load_table
from nora.tables.target import Target, load_target

from synthetic import record_of  # isort: skip


def _entry(table: Target, store: Store, checkout: Path, row: str = "NoRA") -> Entry:
    document = build_artefact(table, take_snapshot(store))
    assert isinstance(document, Document)
    return next(line.entries[0] for line in document.blocks[0].lines if line.label == row)


def _victim(table: Table, store: Store, checkout: Path) -> Path:
    """The folder of the second seed's run behind NoRA on CB."""
    snapshot = take_snapshot(store)
    return store.run_dir("finetune", _entry(table, store, checkout).runs[1]) if snapshot else Path()


def _rewrite(path: Path, change: Callable[[dict[str, object]], None], *, rehash: bool = False) -> None:
    body = json.loads(path.read_text(encoding="utf-8"))
    change(body)
    if rehash:
        body["result_sha256"] = sha256_bytes(canonical_json(body["result"]).encode())
    path.write_text(json.dumps(body), encoding="utf-8")


def _tamper(folder: Path, store: Store) -> None:
    def better(body: dict[str, object]) -> None:
        body["result"]["metrics"]["test"]["accuracy"] = 0.999  # type: ignore[index]

    _rewrite(folder / "record.json", better)


def _tamper_with_new_hash(folder: Path, store: Store) -> None:
    """The hash made to fit: the spec no longer has the record's id."""

    def other_seed(body: dict[str, object]) -> None:
        body["result"]["spec"]["seed"] = 99  # type: ignore[index]

    _rewrite(folder / "record.json", other_seed, rehash=True)


def _foreign(folder: Path, store: Store) -> None:
    _rewrite(folder / "record.json", lambda body: body.update(schema="x"))


def _newer(folder: Path, store: Store) -> None:
    _rewrite(folder / "record.json", lambda body: body.update(schema=2))


def _gutted(folder: Path, store: Store) -> None:
    def empty(body: dict[str, object]) -> None:
        body["result"] = {}

    _rewrite(folder / "record.json", empty, rehash=True)


def _no_number(folder: Path, store: Store) -> None:
    """A score that is no number, and a hash that fits it."""

    def text(body: dict[str, object]) -> None:
        body["result"]["metrics"]["test"]["accuracy"] = "high"  # type: ignore[index]

    _rewrite(folder / "record.json", text, rehash=True)


def _no_proof(folder: Path, store: Store) -> None:
    def forget(body: dict[str, object]) -> None:
        body["result"]["proof"] = {}  # type: ignore[index]

    _rewrite(folder / "record.json", forget, rehash=True)


def _half_written(folder: Path, store: Store) -> None:
    path = folder / "record.json"
    path.write_bytes(path.read_bytes()[:200])


def _binary(folder: Path, store: Store) -> None:
    (folder / "record.json").write_bytes(b"\xff\xfe\x00")


def _copied(folder: Path, store: Store) -> None:
    """Another run's record in this one's place: a good seed would count twice."""
    other = next(path for path in sorted(folder.parent.iterdir()) if path != folder)
    shutil.copy(other / "record.json", folder / "record.json")


def _gone(folder: Path, store: Store) -> None:
    shutil.rmtree(folder)


def _failed(folder: Path, store: Store) -> None:
    shutil.rmtree(folder)
    store.new_attempt("finetune", folder.name).fail("RuntimeError: it broke")


def _interrupted(folder: Path, store: Store) -> None:
    shutil.rmtree(folder)
    store.new_attempt("finetune", folder.name).interrupt("SIGTERM at step 7")


def _running(folder: Path, store: Store) -> None:
    shutil.rmtree(folder)
    store.new_attempt("finetune", folder.name).beat()


def _diverged(folder: Path, store: Store) -> None:
    record = store.read("finetune", folder.name)
    assert record is not None
    result = {**record.result, "status": "diverged", "metrics": {"epochs": []}, "diverged": {"step": 3, "tensor": "x"}}
    (folder / "record.json").write_text(Record(record.id, result, record.run).to_json(), encoding="utf-8")


def _stale(folder: Path, store: Store) -> None:
    record = store.read("finetune", folder.name)
    assert record is not None
    shutil.rmtree(folder)
    spec = {**record.spec, "protocol": {**record.spec["protocol"], "version": 0}}
    assert store.publish_record(Record(run_id(spec), {**record.result, "spec": spec}, record.run))


STATES: list[tuple[Callable[[Path, Store], None], str]] = [
    (_tamper, "damaged 1/2"), (_tamper_with_new_hash, "damaged 1/2"), (_foreign, "damaged 1/2"),
    (_gutted, "damaged 1/2"), (_no_number, "damaged 1/2"), (_no_proof, "damaged 1/2"), (_half_written, "damaged 1/2"),
    (_binary, "damaged 1/2"), (_copied, "damaged 1/2"),
    (_gone, "missing (1/2)"), (_failed, "failed 1/2"), (_interrupted, "interrupted 1/2"), (_running, "running 1/2"),
    (_diverged, "diverged 1/2"), (_stale, "stale 1/2"), (_newer, "newer 1/2"),
]  # fmt: skip


@pytest.fixture
def chosen(checkout: Path, tmp_path: Path) -> tuple[Table, Store]:
    """A small table with all its records. Its grid has
    one point per method, so that the search itself has nothing to choose."""
    table = load_table(checkout, "table2", ["scale=smoke", "task=cb", "seed=0,1"])
    small = Store(tmp_path / "small")
    while True:
        snapshot = take_snapshot(small)
        open_cells = [c for c in table.cells(snapshot) if c.id and c.id not in snapshot]
        if not open_cells:
            return table, small
        for cell in open_cells:
            small.publish_record(record_of(cell))


@pytest.mark.parametrize(("break_it", "state"), STATES, ids=[f.__name__.strip("_") for f, _ in STATES])
def test_a_run_that_cannot_be_counted_has_a_named_state(
    break_it: Callable[[Path, Store], None], state: str, chosen: tuple[Table, Store], checkout: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    table, store = chosen
    before = _entry(table, store, checkout)
    assert "±" in before.text
    # The choice is fixed, as a committed one is.
    settings = {t: {m: _settings(table, store, checkout, m) for m in table.methods} for t in table.columns}
    monkeypatch.setattr("nora.tables.methods.read_chosen", lambda *_: settings)
    table = load_table(checkout, "table2", ["scale=smoke", "task=cb", "seed=0,1", "search=chosen"])
    assert _entry(table, store, checkout).text == before.text
    break_it(_victim(table, store, checkout), store)
    after = _entry(table, store, checkout)
    assert after.text == state and not after.best
    document = build_artefact(table, take_snapshot(store))
    assert isinstance(document, Document)
    assert f",{state.split()[0]}\n" in to_csv(document), "the csv names it too"
    others = [line.entries[0].text for line in document.blocks[0].lines[:6] if line.label != "NoRA"]
    assert break_it is _copied or all("±" in text for text in others)
    words = ["table2", "scale=smoke", "task=cb", "seed=0,1", "search=chosen", f"exec.results={store.root}"]
    assert cli.main(["collate", "--dry-run", *words]) == 0
    shown = capsys.readouterr()
    assert state in shown.out and "Traceback" not in shown.err
    if state.startswith("damaged"):
        assert shown.err.count("nora: ") == 1, "one line says which file and why"


def _settings(table: Table, store: Store, checkout: Path, method: str) -> dict[str, object]:
    from nora.reporting.reported import report

    found = report(table, take_snapshot(store))[method, "cb"].settings
    assert found is not None
    return found


def test_a_dirty_run_counts_and_says_so(chosen: tuple[Table, Store], checkout: Path) -> None:
    table, store = chosen
    folder = _victim(table, store, checkout)

    def dirty(body: dict[str, Any]) -> None:
        body["run"]["dirty"] = True
        del body["run_sha256"]  # as before there was one

    _rewrite(folder / "record.json", dirty)
    entry = _entry(table, store, checkout)
    assert "±" in entry.text and entry.detail == "dirty 1/2"


def test_records_of_an_older_protocol_beside_the_new_ones_are_not_averaged_in(
    chosen: tuple[Table, Store], checkout: Path
) -> None:
    """Every record again with the version before and another score; and a stray file, which is no run."""
    table, store = chosen
    before = _entry(table, store, checkout)
    for record in list(take_snapshot(store).values()):
        spec = {**record.spec, "protocol": {**record.spec["protocol"], "version": 0}}
        test = {**record.metrics["test"], "accuracy": 0.0}
        result = {**record.result, "spec": spec, "metrics": {**record.metrics, "test": test}}
        assert store.publish_record(Record(run_id(spec), result, record.run))
    (store.root / "runs" / "finetune" / ".DS_Store").write_bytes(b"\x00")
    assert _entry(table, store, checkout) == before and take_snapshot(store).damaged == {}


def test_records_of_another_scale_are_never_mixed_in(chosen: tuple[Table, Store], checkout: Path) -> None:
    _, store = chosen
    for scale in ("mini", "paper"):
        table = load_table(checkout, "table2", [f"scale={scale}", "task=cb", "seed=0,1"])
        assert _entry(table, store, checkout).text == "missing"


@pytest.mark.parametrize("target", ["fig1", "table1", "deployment"])
@pytest.mark.parametrize("status", ["diverged", "damaged", "failed"])
def test_a_factorisation_or_deployment_run_that_went_wrong(
    target: str, status: str, tmp_path: Path, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    cell = load_target(checkout, target).cells({})[0]
    assert cell.spec is not None and cell.id is not None
    proof = {"init": "x", "passed": True, "problems": [], "modules": [], "output_difference": 0.0}
    result = {"spec": spec_dict(cell.spec), "status": "diverged", "metrics": {}, "proof": proof, "files": {},
              "diverged": {"step": 3, "tensor": "X"}}  # fmt: skip
    if status == "failed":
        store.new_attempt(str(cell.spec.kind), cell.id).fail("it broke")
    else:
        store.publish_record(Record(cell.id, result, {"wall_seconds": 1.0}))
    if status == "damaged":
        _rewrite(store.record_path(str(cell.spec.kind), cell.id), lambda body: body.update(schema="x"))
    assert cli.main(["collate", target, f"exec.results={tmp_path}"]) == 0
    shown = capsys.readouterr()
    written = "".join(p.read_text(encoding="utf-8") for p in tmp_path.glob("*/*.md"))
    assert status in shown.out and "Traceback" not in shown.err
    # A failed run has no record: a clone would not know of it, so that the file says missing.
    assert (status in written) == (status != "failed") and "missing" in written


def test_a_record_that_holds_less_than_a_layout_reads(chosen: tuple[Table, Store], checkout: Path) -> None:
    table, store = chosen
    folder = _victim(table, store, checkout)

    def forget(body: dict[str, object]) -> None:
        del body["result"]["metrics"]["test"]["accuracy"]  # type: ignore[attr-defined]

    _rewrite(folder / "record.json", forget, rehash=True)
    with pytest.raises(UserError, match="table2: a record behind it has no 'accuracy', which layout methods_by_tasks"):
        build_artefact(table, take_snapshot(store))


BAD_TABLES = {
    "metric": ("fig4", {"panels": {"a": {"metric": "accuracy"}}}, "panels.a.metric"),
    "layout": ("table2", {"layout": "methods_by_taks"}, "layout: given 'methods_by_taks'"),
    "field": ("table2", {"colums": ["cb"]}, "colums"),
    "task": ("table2", {"columns": ["cbb"]}, "cbb"),
    "measure": ("table2", {"measure": {"default": ["spektrum"]}}, "spektrum"),
}


@pytest.mark.parametrize("what", sorted(BAD_TABLES))
def test_a_bad_table_file_is_one_clear_line(what: str, checkout: Path, tmp_path: Path) -> None:
    """The checkout's conf with one table changed: a UserError that names the value, before anything is written."""
    name, changes, words = BAD_TABLES[what]
    for part in ("conf", "data", "assets"):
        shutil.copytree(checkout / part, tmp_path / part, ignore=shutil.ignore_patterns("*.jsonl"))
    path = tmp_path / "conf" / "table" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if what == "metric":
        content["panels"]["a"]["metric"] = "accuracy"
    else:
        content |= changes
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        build_artefact(load_target(tmp_path, name, []), {})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_ledger_whose_digit_was_changed_is_refused(checkout: Path, tmp_path: Path) -> None:
    path = tmp_path / "theory.json"
    text = (checkout / "results" / "theory.json").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    assert read_rows(path)
    path.write_text(text.replace('"instances": 4987', '"instances": 4988', 1), encoding="utf-8")
    with pytest.raises(UserError, match="the rows are not what their hash says"):
        read_rows(path)


def _written(checkout: Path) -> dict[str, Any]:
    """A committed record, and the same as it is written from now on."""
    path = next((checkout / "results").glob("runs/finetune/*/record.json"))
    record = read_record(path)
    assert record is not None and not record.run_is_hashed
    body: dict[str, Any] = json.loads(record.to_json())
    return body


@pytest.mark.parametrize(
    ("key", "value"),
    [("wall_seconds", "x"), ("wall_seconds", 1e9), ("wall_seconds", -1.0), ("started", 1e300), ("started", True),
     ("peak_memory_gib", 1e12), ("attempt", "first"), ("libraries", {"torch": 3}), ("tags", "mini"), ("host", []),
     ("job", 7), ("threads", 1.5), ("anything", float("inf"))],
)  # fmt: skip
def test_the_run_part_has_types_and_ranges(key: str, value: Any, checkout: Path) -> None:
    body = _written(checkout)
    del body["run_sha256"]
    assert not parse_record(json.dumps(body), where="here").run_is_hashed
    body["run"][key] = value
    with pytest.raises(DamagedRecord, match=f"run.{key}"):
        parse_record(json.dumps(body).replace("Infinity", "1e999"), where="here")


def test_the_run_part_is_under_a_hash_of_its_own(checkout: Path) -> None:
    body = _written(checkout)
    assert parse_record(json.dumps(body), where="here").run_is_hashed
    body["run"]["wall_seconds"] *= 10
    with pytest.raises(DamagedRecord, match="the run is not what its hash says"):
        parse_record(json.dumps(body), where="here")


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 3}', '{"rows": [{"id": "Lemma 1"}]}'])
def test_a_ledger_or_a_choice_that_is_none_is_one_clear_line(content: str, checkout: Path, tmp_path: Path) -> None:
    path = tmp_path / "theory.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"theory\.json: .*`nora theory` writes it$"):
        read_rows(path)
    chosen = tmp_path / "conf" / "chosen" / "table2.mini.yaml"
    chosen.parent.mkdir(parents=True)
    chosen.write_text(content or "chosen: 3", encoding="utf-8")
    with pytest.raises(UserError, match=r"table2\.mini\.yaml: .*`nora collate tuning` writes it"):
        read_chosen(tmp_path, "table2", "mini")

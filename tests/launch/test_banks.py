"""A bank as `nora launch` runs it: own attempts and records, the numbers of runs alone, stopped and taken up again."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nora import cli
from nora.adapters import Bank
from nora.config.schema import ExecSpec
from nora.config.spec import run_id
from nora.errors import Interrupted, RunFailed
from nora.execution.bank import BankRun, execute_bank
from nora.execution.execute import execute
from nora.kinds import bank_key, compose_run
from nora.kinds.parts import recipe
from nora.launch import worker
from nora.launch.banks import in_banks
from nora.launch.profile import load_profile
from nora.launch.submission import layout
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import run_state, take_snapshot
from nora.tables.target import load_target
from nora.training import bank as bank_loop
from nora.training import scoring

WORDS = ["scale=smoke", "task=cb", "protocol.epochs=3", "exec.progress=false"]


def _specs(checkout: Path, *more: str) -> tuple[list[Any], ExecSpec]:
    made = [compose_run(checkout, [*WORDS, f"method={m}", *more]) for m in ("lora", "nora", "nora_plus", "pissa")]
    return [spec for spec, _, _ in made], made[0][1]


def _bank(
    checkout: Path, store: Store, specs: list[Any], settings: ExecSpec, **options: Any
) -> dict[int, Record | Exception]:
    told: dict[int, Record | Exception] = {}
    execute_bank(
        [BankRun(spec, ("t",)) for spec in specs], settings, checkout=checkout, store=store,
        on_ended=told.__setitem__, **options,
    )  # fmt: skip
    return told


def _losses(record: Record | Exception) -> list[float]:
    assert isinstance(record, Record), record
    metrics = record.result["metrics"]
    return [e["loss"] for e in metrics["epochs"]] + [metrics["test"]["loss"]]


def test_each_member_has_the_record_it_has_alone(checkout: Path, tmp_path: Path) -> None:
    """In float32, over nine steps: rounding, no more."""
    specs, settings = _specs(checkout)
    assert len({bank_key(spec) for spec in specs}) == 1
    alone, store = Store(tmp_path / "alone"), Store(tmp_path / "bank")
    expected = [execute(spec, settings, checkout=checkout, store=alone)[0] for spec in specs]
    told = _bank(checkout, store, specs, settings)
    assert sorted(told) == [0, 1, 2, 3]
    for number, record in told.items():
        assert isinstance(record, Record)
        assert record.id == expected[number].id
        assert _losses(record) == pytest.approx(_losses(expected[number]), rel=1e-5)
        assert len(record.run["bank"]) == 4 and record.id in record.run["bank"]
        assert record.result["proof"] == expected[number].result["proof"]
        assert run_state(store, "finetune", record.id).state == "done"
        assert not store.verify_files(record)
    again = _bank(checkout, store, specs, settings)  # nothing is left to do
    assert {n: r.run["started"] for n, r in again.items() if isinstance(r, Record)} == {
        n: r.run["started"] for n, r in told.items() if isinstance(r, Record)
    }


def test_every_start_is_a_member_and_every_other_step_is_not(checkout: Path, tmp_path: Path) -> None:
    """All starts beside each other, data-driven and moved ones among them; a variant or optimiser is alone, and so is
    LoftQ, whose base is another one."""
    methods = sorted(path.stem for path in (checkout / "conf" / "method").glob("*.yaml"))
    made = [compose_run(checkout, [*WORDS, f"method={m}"]) for m in methods]
    settings = made[0][1]
    specs = [s for s, _, _ in made if s.method.variant is None and s.method.optimizer is None]  # type: ignore[union-attr]
    specs = [spec for spec in specs if spec.method.adapter == "lora"]  # type: ignore[union-attr]
    assert [bank_key(s) for s in specs if s.method.init == "loftq"] == [None]  # type: ignore[union-attr]
    specs = [spec for spec in specs if spec.method.init != "loftq"]  # type: ignore[union-attr]
    assert len(specs) > 12 and len({bank_key(spec) for spec in specs}) == 1
    compiled = replace(settings, bank=None, compile=True)
    assert len(in_banks(specs, compiled, on_gpu=False)) == len(specs), "compiled runs go one by one"
    assert {bank_key(s) for s, _, _ in made if s.method.variant or s.method.optimizer} == {None}  # type: ignore[union-attr]
    told = _bank(checkout, Store(tmp_path / "bank"), specs, settings)
    for number, spec in enumerate(specs):
        alone = execute(spec, settings, checkout=checkout, store=Store(tmp_path / "alone"))[0]
        record = told[number]
        assert isinstance(record, Record) and len(record.run["bank"]) == len(specs), spec
        assert _losses(record) == pytest.approx(_losses(alone), rel=2e-5), spec


def test_a_stopped_bank_goes_on_to_the_same_records(checkout: Path, tmp_path: Path) -> None:
    specs, settings = _specs(checkout)
    quiet = _bank(checkout, Store(tmp_path / "quiet"), specs, settings)
    store, asked = Store(tmp_path / "stopped"), [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 6  # between the second and the third member of the second step

    with pytest.raises(Interrupted):
        _bank(checkout, store, specs, settings, stop_requested=stop)
    for spec in specs:
        (attempt,) = store.attempts("finetune", run_id(spec))
        assert len(list(attempt.path.glob("step-00000002.*.safetensors"))) == 1
        assert run_state(store, "finetune", run_id(spec)).state == "interrupted"
    resumed = _bank(checkout, store, specs, settings)
    for number, record in resumed.items():
        before = quiet[number]
        assert isinstance(record, Record) and isinstance(before, Record)
        assert record.result == before.result  # to the byte
        assert record.run["resumed_at_step"] == 2


def test_members_left_at_different_steps_share_what_they_can(checkout: Path, tmp_path: Path) -> None:
    """One of four has a checkpoint of its own from an earlier attempt: it goes on from there, by itself."""
    specs, settings = _specs(checkout)
    store, asked = Store(tmp_path), [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 3

    with pytest.raises(Interrupted):
        execute(specs[1], settings, checkout=checkout, store=store, stop_requested=stop)
    told = _bank(checkout, store, specs, settings)
    sizes = {n: len(r.run.get("bank", [])) for n, r in told.items() if isinstance(r, Record)}
    assert sizes == {0: 3, 1: 0, 2: 3, 3: 3}
    assert told[1].run["resumed_at_step"] == 4  # type: ignore[union-attr]


def test_a_bank_that_does_not_fit_makes_no_run_fail(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    specs, settings = _specs(checkout)

    def no_room(*arguments: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def by_itself(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        assert not [thing for thing in gc.get_objects() if type(thing) in (Bank, recipe.Prepared)], (
            "the bank's memory is still held"
        )
        return execute(*arguments, **options)

    monkeypatch.setattr(bank_loop, "bank_step", no_room)
    monkeypatch.setattr("nora.execution.bank.execute", by_itself)
    store = Store(tmp_path)
    told = _bank(checkout, store, specs, settings)
    assert all(isinstance(record, Record) and "bank" not in record.run for record in told.values())
    assert "they begin again one by one" in caplog.text and "can't allocate" in caplog.text
    assert all(run_state(store, "finetune", run_id(spec)).state == "done" for spec in specs)
    assert not list(tmp_path.rglob("failed.json"))


def test_one_member_that_fails_costs_the_others_nothing(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, settings = _specs(checkout)
    add = recipe.make_preconditioner

    def broken(method: Any, model: Any) -> Any:
        if method.name == "nora_plus":
            raise OSError("no more disk")
        return add(method, model)

    monkeypatch.setattr(recipe, "make_preconditioner", broken)
    store = Store(tmp_path)
    told = _bank(checkout, store, specs, settings)
    assert "no more disk" in str(told[2])
    assert [n for n, r in told.items() if isinstance(r, Record)] == [0, 1, 3]
    assert run_state(store, "finetune", run_id(specs[2])).state == "failed"


def test_a_diverged_member_has_a_record_that_says_so(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, settings = _specs(checkout)
    together = recipe.train_together

    def poisoned(members: Any) -> Any:
        with torch.no_grad():
            next(iter(members[1].run.state.parameters.values())).fill_(torch.nan)
        return together(members)

    monkeypatch.setattr("nora.execution.bank.train_together", poisoned)
    told = _bank(checkout, Store(tmp_path), specs, settings)
    assert {n: r.status for n, r in told.items() if isinstance(r, Record)} == {
        0: "done", 1: "diverged", 2: "done", 3: "done"
    }  # fmt: skip


def test_who_can_share_a_step(checkout: Path) -> None:
    """Base, rows, seed, batches and the adapter's shape are common; method, lr and ξ are each one's own."""
    one = compose_run(checkout, [*WORDS, "method=lora"])[0]

    def key(*words: str) -> str | None:
        return bank_key(compose_run(checkout, [*WORDS, "method=lora", *words])[0])

    own = bank_key(one)
    assert own is not None
    assert own == key("protocol.lr=0.5") == key("method=nora", "method.xi=0.3") == key("method=olora")
    others = ("seed=1", "protocol.batch_size=2", "method.rank=2", "task=rte", "method=prefix", "protocol.epochs=4")
    assert len({own, *(key(words) for words in others)}) == 1 + len(others)
    assert bank_key(compose_run(checkout, ["kind=dreambooth", "scale=smoke", "method=nora"])[0]) is None


def test_the_planner_fills_steps_and_processes(checkout: Path) -> None:
    settings = compose_run(checkout, [*WORDS, "method=lora"])[1]
    target = load_target(checkout, "table2", ["scale=mini", "task=sst2"])
    cells = [cell for cell in target.cells({}) if cell.spec is not None]
    assert len(cells) == 12  # LoRA's search: two batch sizes, two learning rates, three seeds
    specs = [cell.spec for cell in cells]
    assert in_banks(specs, replace(settings, bank=1), on_gpu=True) == [[i] for i in range(12)]
    for processes in (1, 2, 3):
        banks = in_banks(specs, replace(settings, bank=4), on_gpu=False, processes=processes)
        assert sorted(place for bank in banks for place in bank) == list(range(12))
        assert max(len(bank) for bank in banks) <= 4
        assert all(len({bank_key(specs[place]) for place in bank}) == 1 for bank in banks)  # type: ignore[arg-type]
    assert [len(bank) for bank in in_banks(specs, settings, on_gpu=False)] == [2] * 6
    assert len(in_banks(specs, replace(settings, bank=4), on_gpu=False, processes=2)) == 12  # every process has some
    (array,) = layout(cells, load_profile(checkout, compose_run(checkout, [*WORDS, "exec=slurm"])[1]), settings)
    assert [len(task) for task in array.tasks] == [2] * 6 and array.num_runs == 12  # one task of the array per bank


@pytest.mark.slow
def test_the_table_of_a_search_is_the_same_with_banks_and_without(checkout: Path, tmp_path: Path) -> None:
    """In float64, both stages of a search: the same file to the byte, and a bank was what trained the second stage."""
    words = ["scale=smoke", "task=cb", "seed=0", "method=lora,lora_p,nora,nora_plus", "model.dtype=float64"]
    made = []
    for bank in ("1", "null"):
        own = [*words, f"exec.results={tmp_path / bank}", "exec.processes=1", f"exec.bank={bank}"]
        assert cli.main(["launch", "table2", *own]) == 0
        assert cli.main(["collate", "table2", *own]) == 0
        made.append([(tmp_path / bank / "tables" / f"table2.smoke.{kind}").read_bytes() for kind in ("md", "csv")])
    assert made[0] == made[1]
    records = take_snapshot(Store(tmp_path / "null")).values()
    assert [len(r.run.get("bank", [])) for r in sorted(records, key=lambda r: r.run["started"])][1:] != [0] * 3
    assert not any("bank" in r.run for r in take_snapshot(Store(tmp_path / "1")).values())


def test_what_members_have_in_common_is_made_once(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are tokenised once; dev and test are read in one pass for all; the zero-shot score is measured once for all
    whose base is untouched, and is each one's own to the byte."""
    specs, settings = _specs(checkout, "measure=[zero_shot]", "seed=3")
    alone = [execute(spec, settings, checkout=checkout, store=Store(tmp_path / "a"))[0] for spec in specs]
    encoded, measured = [0], [0]
    encode, measures = scoring.encode_example, scoring.Assessor.measures

    def counted(*arguments: Any, **options: Any) -> Any:
        encoded[0] += 1
        return encode(*arguments, **options)

    def counting(*arguments: Any) -> Any:
        measured[0] += 1
        return measures(*arguments)

    monkeypatch.setattr(scoring, "encode_example", counted)
    monkeypatch.setattr(scoring.Assessor, "measures", counting)
    told = _bank(checkout, Store(tmp_path / "b"), specs, settings)
    spec = specs[0].task
    assert encoded[0] == spec.num_train + spec.num_dev + spec.num_test
    for number, record in told.items():
        assert isinstance(record, Record)
        given, expected = (r.result["metrics"]["zero_shot"] for r in (record, alone[number]))
        assert given == expected
    (epochs,) = {len(r.result["metrics"]["epochs"]) for r in told.values() if isinstance(r, Record)}
    # Twice zero-shot: once for lora, nora and nora_plus, once for PiSSA's moved base.
    assert measured[0] == 2 + epochs + 1


def test_a_frozen_spec_that_is_not_its_ids_costs_only_its_own_run(checkout: Path) -> None:
    """On a node: the others of its task are the bank that they were."""
    specs, settings = _specs(checkout)
    frozen = dict(zip("abcd", specs, strict=True))

    class Submitted:
        def spec(self, identity: str) -> Any:
            if identity == "b":
                raise RunFailed("the frozen spec of b has the id x")
            return frozen[identity]

    submission: Any = Submitted()
    assert worker._banks(submission, replace(settings, bank=4), list("abcd")) == [["a", "c", "d"], ["b"]]
    assert worker._banks(submission, settings, list("abcd")) == [["a"], ["b"], ["c"], ["d"]]

"""``task=choice`` and ``task=instruct``: rows of one's own, checked before anything starts, trained on, shown."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from sklearn.metrics import f1_score
from transformers import AutoTokenizer

from hub_twins.rehearsal import environment
from hub_twins.server import Hub, Repo, serve
from hub_twins.site import make_site
from nora import cli, tasks
from nora.config import own_rows
from nora.config.spec import run_id
from nora.errors import RunFailed, UserError
from nora.kinds import FewShotSpec, FinetuneSpec, compose_run
from nora.kinds.parts.rows import few_shot_rows, load_instruct_rows
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.verify import verify_record
from nora.tasks.metrics import score

LABELS = "task.labels={pos: ' great', neg: ' bad'}"
ROWS = [{"id": i, "text": f"a {'good' if i % 2 else 'poor'} day {i}", "label": "pos" if i % 2 else "neg"}
        for i in range(20)]  # fmt: skip


def written(path: Path, rows: Sequence[Any] = ROWS) -> Path:
    """The rows in the format of the file's name."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def spec_of(checkout: Path, *words: str) -> FinetuneSpec:
    spec, _, _ = compose_run(checkout, ["scale=smoke", "task=choice", LABELS, *words])
    assert isinstance(spec, FinetuneSpec)
    return spec


def ran(tmp_path: Path, *words: str) -> Record:
    place = f"exec.results={tmp_path / 'store'}"
    assert cli.main(["run", "scale=smoke", *words, "exec.device=cpu", "exec.progress=false", place]) == 0
    (path,) = (tmp_path / "store").glob("runs/finetune/*/record.json")
    record = Store(tmp_path / "store").read("finetune", path.parent.name)
    assert record is not None and verify_record(Store(tmp_path / "store"), record) == []
    return record


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_holds_the_same_rows(suffix: str, checkout: Path, tmp_path: Path) -> None:
    spec = spec_of(checkout, f"task.file={written(tmp_path / f'my{suffix}')}")
    task = tasks.of(spec.task)
    splits = few_shot_rows(spec.task, task, checkout, seed=0)
    made = [task.build(row) for split in splits for row in split]
    assert sorted(example.prompt for example in made) == sorted(f"{row['text']}\n" for row in ROWS)
    assert {(("good" in e.prompt), e.candidates[e.gold]) for e in made} == {(True, " great"), (False, " bad")}
    assert [len(split) for split in splits] == [12, 4, 4] and spec.task.name == "my"


def test_what_is_tested_is_the_same_for_every_seed_and_order_of_the_file(checkout: Path, tmp_path: Path) -> None:
    def tested(path: Path, seed: int) -> set[int]:
        spec = spec_of(checkout, f"task.file={path}")
        train, dev, test = few_shot_rows(spec.task, tasks.of(spec.task), checkout, seed=seed)
        assert len({row["id"] for row in (*train, *dev, *test)}) == 20, "no row is in two splits"
        return {row["id"] for row in test}

    one = written(tmp_path / "one.jsonl")
    other = written(tmp_path / "other.jsonl", ROWS[::-1])
    assert tested(one, 0) == tested(one, 1) == tested(other, 0)


def test_a_run_of_ones_own_rows(checkout: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "my.jsonl")
    record = ran(
        tmp_path, "task=choice", f"task.file={path}", LABELS, "task.metric=macro_f1", r"task.prompt='{text}\nIs'"
    )
    task = record.spec["task"]
    assert task["prompt"] == "{text}\nIs" and task["labels"] == {"pos": " great", "neg": " bad"}
    assert (task["num_train"], task["num_dev"], task["num_test"], task["name"]) == (12, 4, 4, "my")
    assert set(task["files"]) == {"file"} and "test_file" not in task and "macro_f1" in record.metrics["test"]


@pytest.mark.parametrize(("metric", "key"), [("accuracy", "mean_accuracy"), ("f1", "f1")])
def test_a_run_that_answers(metric: str, key: str, checkout: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "my.csv", [{"q": f"{i} + 1", "a": f"So: {i + 1}"} for i in range(20)])
    record = ran(
        tmp_path, "task=instruct", f"task.file={path}", r"task.prompt='{q} ='", r"task.response=' {a}'",
        "task.answer_after='So: '", r"task.answer='{a}'", "model=llama_smoke", "protocol=llm_adapters_modern",
        f"task.metric={metric}",
    )  # fmt: skip
    assert record.metrics["test"]["n"] == 4 and key in record.metrics["test"]
    spec = spec_of(checkout, "task=instruct", "task.labels=null", "protocol=llm_adapters_modern", f"task.file={path}",
                   r"task.prompt='{q} ='", r"task.response=' {a}'", "task.answer_after='So: '",
                   "task.answer='{a}'")  # fmt: skip
    task = tasks.of(spec.task)
    rows = load_instruct_rows(spec.task, task, checkout, seed=0)
    assert rows.train[0].target.startswith(" So: ") and rows.train[0].question.endswith(" =")
    assert task.extract("I think. So: 7 ", "my") == "7" and task.extract("seven", "my") == ""
    texts = [{row.prompt for row in split} for split in (rows.train, rows.dev, rows.test)]
    assert len(set.union(*texts)) == sum(map(len, texts)) == 20


def test_ids_follow_what_is_read_and_not_where_it_lies_in_the_spelling(checkout: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "my.jsonl")
    first = spec_of(checkout, f"task.file={path}")
    for words in (["task.prompt='{text} '"], ["task.labels={pos: ' good', neg: ' bad'}"], ["task.num_test=5"]):
        assert run_id(spec_of(checkout, f"task.file={path}", *words)) != run_id(first)
    assert run_id(spec_of(checkout, f"task.file={tmp_path}/./my.jsonl")) == run_id(first)
    written(path, [*ROWS, {"id": 20, "text": "another", "label": "pos"}])
    assert run_id(spec_of(checkout, f"task.file={path}")) != run_id(first)
    assert isinstance(first, FewShotSpec)
    with pytest.raises(RunFailed, match="not the file that was hashed"):
        few_shot_rows(first.task, tasks.of(first.task), checkout, seed=0)


def row(**fields: Any) -> dict[str, Any]:
    return {"id": 99, "text": "one more", "label": "pos", **fields}


MISTAKES = {
    "no such file": (None, [], "no such file"),
    "a format": ("my.xml", ["x"], "required a file of .jsonl"),
    "empty": ("my.jsonl", [], "holds no row"),
    "no JSON": ("my.jsonl", [*ROWS, "{"], "line 21: not valid JSON"),
    "no object": ("my.jsonl", [*ROWS, "3"], "line 21: given 3, required an object"),
    "a missing field": ("my.jsonl", [*ROWS, {"id": 7, "txt": "x", "label": "pos"}],
                        "my.jsonl, line 21: lacks text; it has id, txt, label; did you mean txt?"),
    "a blank line before": ("my.jsonl", ["", *ROWS, {"label": "pos"}], "line 22: lacks text"),
    "a missing value": ("my.csv", [*ROWS, row(text="")], "my.csv, line 22: its prompt is empty"),
    "null": ("my.jsonl", [*ROWS, row(text=None)], "line 21: text is null"),
    "a list": ("my.jsonl", [*ROWS, row(text=["x"])], "line 21: text is no text"),
    "a label": ("my.jsonl", [*ROWS, row(label="meh")], "line 21: label is 'meh', which is none of the labels neg, pos"),
    "an id twice": ("my.jsonl", [*ROWS, row(id=3)], "line 21: id '3' is there twice"),
    "a question twice": ("my.parquet", [*ROWS, row(text=ROWS[4]["text"])],
                         "my.parquet, row 21: asks what my.parquet, row 5 asks"),
    "one label": ("my.jsonl", [r for r in ROWS if r["label"] == "pos"], "every row's label is pos"),
    "too few": ("my.jsonl", [ROWS[0], ROWS[1]], "task.num_train: 1 rows are asked for, 0 of 2 are left"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_with_the_rows_is_one_line_with_its_place(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, rows, said = MISTAKES[mistake]
    path = written(tmp_path / name, rows) if name else tmp_path / "absent.jsonl"
    words = ["scale=smoke", "task=choice", LABELS, f"task.file={path}", "task.prompt='{text}'"]
    assert cli.main(["run", *words, f"exec.results={tmp_path / 'store'}"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.prompt='no field'"], "task.prompt: given 'no field', required a template with at least one {field}"),
        (["task.prompt='{text!r}'"], "required fields as {name}"),
        (["task.prompt='{text'"], "task.prompt: expected '}' before end of string"),
        (
            ["task.metric=accuracies"],
            "task.metric: given 'accuracies', did you mean accuracy? allowed accuracy, macro_f1",
        ),
        (["task.num_test=0"], "task.num_test: given 0, required a whole number"),
        (["task.num_train=15"], "15 rows are asked for, 12 of 20 are left beside dev and test"),
        (["protocol=llm_adapters_modern"], "the protocol is for the suite instruct; give protocol=mezo"),
        (["task.candidates=text"], "task.labels: given with task.candidates; required one"),
        (["task.response=x"], "task.response: no meaning with task.suite=choice"),
        (["task=cb", "task.prompt=x"], "task.prompt: no meaning with source=slice"),
        (["task.file=null"], "task.file: given None, required a file of .jsonl"),
    ],
)
def test_what_is_wrong_with_the_keys_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["scale=smoke", "task=choice", LABELS, f"task.file={written(tmp_path / 'my.jsonl')}", *words]
    if "task=cb" in words:
        given = ["scale=smoke", *words]
    assert cli.main(["run", *given, f"exec.results={tmp_path / 'store'}"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_test_rows_of_their_own_are_kept_apart_from_the_training_rows(checkout: Path, tmp_path: Path) -> None:
    train, unseen = written(tmp_path / "my.jsonl"), [row(text="unseen", label="pos")]
    spec = spec_of(checkout, f"task.file={train}", f"task.test_file={written(tmp_path / 'test.jsonl', unseen)}")
    assert (spec.task.num_train, spec.task.num_dev, spec.task.num_test) == (16, 4, 1)
    more = written(tmp_path / "more.jsonl", [row(id=i, text=f"unseen {i}") for i in range(9)])
    part = spec_of(checkout, f"task.file={train}", f"task.test_file={more}", "task.num_test=3")
    drawn = [few_shot_rows(part.task, tasks.of(part.task), checkout, seed=seed).test for seed in (0, 1)]
    assert {r["text"] for r in drawn[0]} == {r["text"] for r in drawn[1]} and len(drawn[0]) == 3
    assert few_shot_rows(spec.task, tasks.of(spec.task), checkout, seed=0).test == unseen
    leak = written(tmp_path / "leak.jsonl", [*unseen, row(id=5, text=ROWS[2]["text"])])
    with pytest.raises(UserError, match=r"leak.jsonl, line 2: asks what my.jsonl, line 3 asks: it is in training and"):
        spec_of(checkout, f"task.file={train}", f"task.test_file={leak}")
    strange = written(tmp_path / "strange.jsonl", [row(text="strange", label="meh")])
    with pytest.raises(UserError, match="strange.jsonl, line 1: label is 'meh', which is none of the labels neg, pos"):
        spec_of(checkout, f"task.file={train}", f"task.test_file={strange}", "task.labels=null")
    with pytest.raises(UserError, match="strange.jsonl, line 1: label is 'meh', which no row of my.jsonl has"):
        spec_of(checkout, f"task.file={train}", f"task.test_file={strange}", "task.labels={pos: a, neg: b, meh: c}")


def test_a_row_may_bring_its_own_answers(checkout: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{i} + {i}?", "options": [str(2 * i), str(2 * i + 1), "none"], "label": i % 2} for i in range(12)]
    path = written(tmp_path / "sums.jsonl", rows)
    spec = spec_of(checkout, f"task.file={path}", "task.labels=null", "task.candidates=options")
    task = tasks.of(spec.task)
    assert task.build(rows[3]).correct == (1,) and task.build({**rows[3], "label": "none"}).correct == (2,)
    for fields, said in (
        ({"label": 3}, "0 to 2"),
        ({"options": ["a"]}, "at least two"),
        ({"options": ["a", "a"]}, "twice"),
    ):
        with pytest.raises(ValueError, match=said):
            task.build({**rows[3], **fields})


def test_macro_f1_is_scikit_learns() -> None:
    predictions = [
        {"prediction": p, "correct": [c]} for p, c in zip([0, 1, 1, 2, 0, 3, 1], [0, 0, 1, 1, 2, 1, 1], strict=True)
    ]
    wanted = f1_score([r["correct"][0] for r in predictions], [r["prediction"] for r in predictions], average="macro",
                      zero_division=0)  # fmt: skip
    assert score("macro_f1", predictions) == pytest.approx(wanted, abs=1e-12)


def test_the_escapes_that_a_shell_lets_through() -> None:
    assert own_rows._unescaped(r"a\nb\tc\\n") == "a\nb\tc\\n"


def test_task_show_prints_the_strings_the_tokens_and_where_the_loss_falls(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scale=smoke", f"task.file={written(tmp_path / 'my.jsonl')}", LABELS, r"task.prompt='{text}\n It was'"]
    assert cli.main(["task", "show", "choice", *words, "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("training row") == 3 and r"\n It was great'" in out and "12 train, 4 dev, 4 test rows" in out
    assert "runs into" not in out
    assert cli.main(["task", "show", "choice", *words[:2], "task.prompt='{text} it was'", "-n", "1"]) == 0
    assert "runs into the answer" in capsys.readouterr().out
    assert cli.main(["task", "show", "choice", *words, "-n", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    tokenizer = AutoTokenizer.from_pretrained(checkout / "assets" / "opt_mini")
    for text in shown["rows"][0]["texts"]:
        assert text["ids"] == tokenizer(text["text"])["input_ids"], "the very text"
        prompt = text["text"].removesuffix(" great").removesuffix(" bad")
        assert text["ids"][: text["first_scored"]] == tokenizer(prompt)["input_ids"]
    assert sum(text["right"] for text in shown["rows"][0]["texts"]) == 1


@pytest.mark.parametrize("name", ["cb", "squad", "commonsense", "gsm8k"])
def test_task_show_knows_the_papers_tasks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["task", "show", name, "-n", "1", "scale=smoke"]) == 0
    out = capsys.readouterr().out
    assert "training row 1" in out and " | " in out
    assert cli.main(["task", "show", "dog"]) == 2


OF_HUB = ["scale=smoke", "task=choice", "task.file=somebody/reviews", "task.labels={0: ' bad', 1: ' good'}",
          r"task.prompt='{text}\n'"]  # fmt: skip


def test_rows_of_the_hub_are_brought_by_their_commit_and_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Hub on 127.0.0.1: shown there, planned and run without any; a commit that is not here is refused."""

    def lines(rows: Sequence[Any]) -> bytes:
        return b"".join(json.dumps({"text": r["text"], "label": r["id"] % 2}).encode() + b"\n" for r in rows)

    (tmp_path / "site").mkdir()
    site = make_site(tmp_path / "site")
    repo = Repo({"train.jsonl": lines(ROWS), "test.jsonl": lines([row(id=i, text=f"unseen {i}") for i in range(6)])})
    hub = Hub(datasets={"somebody/reviews": repo})

    def shown(endpoint: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "nora",
            "task",
            "show",
            "choice",
            *OF_HUB[2:],
            "scale=smoke",
            "-n",
            "1",
            *words,
        ]
        return subprocess.run(
            command, cwd=site, env=environment(tmp_path, endpoint=endpoint), capture_output=True, text=True, check=False
        )

    monkeypatch.chdir(site)
    assert cli.main(["run", *OF_HUB]) == 2
    assert "nor is train of that data set; `nora task show`" in capsys.readouterr().err
    done = shown("")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "offline" in done.stderr.lower(), done.stderr
    with serve(hub):
        assert "somebody/reviews: Unknown split" in shown(hub.endpoint, "task.split=training").stderr
        done = shown(hub.endpoint, "task.test_split=test")
        asked = len(hub.asked)
        assert done.returncode == 0, done.stderr
        assert (
            f"train 20 rows, test 6 rows, commit {repo.commit}" in done.stderr
            and "16 train, 4 dev, 6 te" in done.stdout
        )
        assert shown(hub.endpoint, "task.test_split=test").returncode == 0 and len(hub.asked) == asked, "asked again"
    spec = spec_of(site, *OF_HUB[2:])
    told = spec_of(site, *OF_HUB[2:], "task.test_split=test", f"task.revision={repo.commit}")
    assert (spec.task.name, spec.task.revision, spec.task.file) == ("reviews", repo.commit, "somebody/reviews")
    assert set(spec.task.files or {}) == {"file"} and set(told.task.files or {}) == {"file", "test_file"}
    assert run_id(told) != run_id(spec)
    taken = few_shot_rows(told.task, tasks.of(told.task), site, seed=0)
    assert {r["text"] for r in taken.test} == {f"unseen {i}" for i in range(6)} and len(taken.train) == 16
    with pytest.raises(UserError, match=f"nor is train of that data set at {'1' * 40}"):
        spec_of(site, *OF_HUB[2:], f"task.revision={'1' * 40}")
    with pytest.raises(UserError, match="a branch or tag can move"):
        spec_of(site, *OF_HUB[2:], "task.revision=main")
    record = ran(tmp_path, *OF_HUB[1:], "task.test_split=test")
    assert record.metrics["test"]["n"] == 6 and record.spec["task"]["revision"] == repo.commit
    brought = site / "data/hub/rows/somebody--reviews" / repo.commit / "default" / "train.jsonl"
    brought.write_bytes(brought.read_bytes() + lines([row(id=5, text="another")]))
    with pytest.raises(RunFailed, match="not the file that was hashed"):
        few_shot_rows(told.task, tasks.of(told.task), site, seed=0)
    with pytest.raises(UserError, match=r"task.split: no meaning with a file"):
        spec_of(site, f"task.file={written(tmp_path / 'my.jsonl')}", "task.split=train")

"""The rows of the small scale: ``python tools/make_small_rows.py FOLDER`` writes data/small/ from whole data sets,
and data/held_out/ from a book.

FOLDER holds the sets as JSON lines and MANIFEST.tsv with their source and licence. Of a large split a fixed random
draw is kept, in the split's order, and only the fields that the task reads: what the yaml of the scale can use.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nora import tasks
from nora.tasks.instruct import commonsense

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


class Source(NamedTuple):
    """Where a task's two splits are below FOLDER, and how many rows of each are kept (None: all)."""

    train: str
    validation: str
    num_train: int | None = None
    num_validation: int | None = None


SOURCES = {
    "sst2": Source("glue_sst2/full/train.jsonl", "glue_sst2/full/validation.jsonl", 4096),
    "boolq": Source("super_glue_boolq/full/train.jsonl", "super_glue_boolq/full/validation.jsonl", 1536, 640),
    "rte": Source("super_glue_rte/full/train.jsonl", "super_glue_rte/full/validation.jsonl"),
    "cb": Source("super_glue_cb/slice/train.jsonl", "super_glue_cb/slice/validation.jsonl"),
    "wsc": Source("super_glue_wsc/full/train.jsonl", "super_glue_wsc/full/validation.jsonl"),
    "multirc": Source(
        "super_glue_multirc/full/train.orig.jsonl", "super_glue_multirc/full/validation.orig.jsonl", 1536, 640
    ),
    "record": Source("super_glue_record/slice/train.jsonl", "super_glue_record/slice/dev32.jsonl"),
    "squad": Source("squad/full/train.jsonl", "squad/full/validation.jsonl", 1024, 512),
}


_ADAPTERS = "commonsense_llm_adapters/slice/{}.jsonl"
_FROM_ELSEWHERE = {"social_i_qa": "train_from_test", "hellaswag": "train_from_val"}
"""Sets whose training rows are of an evaluation split here; the rows they are tested on are other ones of it."""
SETS = {
    "commonsense": {
        f"{name}.{part}": (_ADAPTERS.format(f"{own.folder}.{origin}"), count)
        for name, own in commonsense.SETS.items()
        for part, origin, count in (("train", _FROM_ELSEWHERE.get(name, "train"), 216), ("test", "test", 128))
    },
    "gsm8k": {
        "standin": ("math_llm_adapters/full/math_data.json", 800),
        "train": ("gsm8k/slice/train.jsonl", 64),
        "test": ("gsm8k/slice/test.jsonl", 128),
    },
}
"""Of a task that trains on instructions: name of the file -> where it is below FOLDER, how many of its first rows."""


def read(path: Path) -> list[Row]:
    """The rows of a file; MultiRC's nested form as the Hub's one row per answer."""
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return [flat for row in rows for flat in unnest(row)] if path.name.endswith(".orig.jsonl") else rows


def unnest(row: Row) -> Iterator[Row]:
    """MultiRC's paragraph with its questions and their answers, answer by answer."""
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": row["passage"]["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer["label"],
            }


def draw(rows: list[Row], count: int | None) -> list[Row]:
    """A fixed draw of ``count`` rows, in the split's order."""
    if count is None or count >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), count))]


def packed(rows: list[Row]) -> bytes:
    """A JSON line per row, compressed; the same rows give the same bytes."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def read_by(task: ModuleType, rows: list[Row]) -> list[Row]:
    """What a few-shot task reads of its rows."""
    fields = [*task.FIELDS, *(key for key in ("answer", "label") if key not in task.FIELDS and key in rows[0])]
    kept = [{key: row[key] for key in fields} for row in rows]
    for row in kept:
        task.build(row)
    return kept


BOOK, LETTERS, SHORTEST = "corpus_books/full/valid.txt", 60_000, 200
"""Kept of it: whole paragraphs from its beginning, none of them shorter, until there are so many characters."""


def paragraphs(text: str) -> Iterator[Row]:
    """The book's beginning, a row per paragraph."""
    left = LETTERS
    for block in text.split("\n\n"):
        line = " ".join(part.strip() for part in block.strip().splitlines())
        if len(line) >= SHORTEST and left > 0:
            left -= len(line)
            yield {"text": line}


def write_book(folder: Path, told: dict[str, str]) -> dict[str, Row]:
    """Writes data/held_out/; its manifest entry."""
    rows = list(paragraphs((folder / BOOK).read_text(encoding="utf-8")))
    file = ROOT / "data" / "held_out" / "books.jsonl.gz"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(packed(rows))
    first, commit, path = (told[key].split(" ; ")[0] for key in ("source_repo", "commit", "source_path"))
    notice = [
        "A book that no base made here was trained on: what training on a task changes elsewhere "
        "(measure=[forgetting]).",
        "",
        f"{file.name} <- {first} @ {commit}, {path}",
        f"  licence: {told['licence']}",
        f"  its first {len(rows)} paragraphs of {SHORTEST} characters or more, a row each. Public bases may have read "
        "it.",
        "",
    ]
    (file.parent / "NOTICE").write_text("\n".join(notice), encoding="utf-8")
    return {f"held_out/{file.name}": {"rows": len(rows), "sha256": sha256(file.read_bytes()).hexdigest()}}


def letters(text: str) -> str:
    """A text's letters and digits: what makes two spellings of a question one."""
    return "".join(filter(str.isalnum, text.lower()))


def write_rows(name: str, stem: str, rows: list[Row]) -> dict[str, Row]:
    """Writes a file of data/small/; its manifest entry."""
    file = ROOT / "data" / "small" / name / f"{stem}.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(packed(rows))
    return {f"small/{name}/{file.name}": {"rows": len(rows), "sha256": sha256(file.read_bytes()).hexdigest()}}


def noticed(stem: str, told: dict[str, str], kept: str) -> list[str]:
    """What NOTICE says of a file: where it is from, its licence, what of it is kept."""
    return [
        f"{stem}.jsonl.gz <- {told['source_repo']} @ {told['commit']}, {told['source_path']}",
        f"  licence: {told['licence']}",
        f"  {kept}",
        "",
    ]


def main(folder: Path) -> None:
    """Writes the rows, their NOTICE and their manifest entries."""
    with (folder / "MANIFEST.tsv").open(encoding="utf-8") as table:
        listed = {row["path"]: row for row in csv.DictReader(table, delimiter="\t")}
    path = ROOT / "data" / "MANIFEST.json"
    manifest = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if not k.startswith("small/")}
    manifest |= write_book(folder, listed[BOOK])
    notices: dict[str, list[str]] = {}
    for name, source in SOURCES.items():
        task = tasks.load("superglue", name)
        notices[name] = [f"{task.LABEL}: rows for the small scale.", ""]
        for split, count in (("train", source.num_train), ("validation", source.num_validation)):
            origin = getattr(source, split)
            rows = read(folder / origin)
            drawn = draw(rows, count)
            manifest |= write_rows(name, split, read_by(task, drawn))
            part = "all" if len(drawn) == len(rows) else f"a fixed random draw of {len(drawn)} of"
            notices[name] += noticed(split, listed[origin], f"{part} {len(rows)} rows, the fields that the task reads")
    for name, files in SETS.items():
        task = tasks.load("instruct", name)
        notices[name] = [f"{task.LABEL}: rows for the small scale.", ""]
        for stem, (origin, count) in files.items():
            rows, told, what = read(folder / origin), listed[origin], "rows"
            if stem == "standin":  # some are choices, whose answer is a letter, and some are GSM8K's own test questions
                tested = {letters(row["question"]) for row in read(folder / files["test"][0])}
                rows = [row for row in rows if letters(row["instruction"]) not in tested]
                rows = [row for row in rows if task.extract(task.training(row, name).target)]
                what = "rows that are no test question and whose answer is a number"
            manifest |= write_rows(name, stem, rows[:count])
            part = f"the first {count} of {len(rows)} {what}" + (f" ({told['note']})" if told["note"] else "")
            notices[name] += noticed(stem, told, part)
    for name, lines in notices.items():
        (ROOT / "data" / "small" / name / "NOTICE").write_text("\n".join(lines), encoding="utf-8")
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""``task=choice`` and ``task=instruct``: rows of one's own, read, checked and hashed before anything starts.

A file, or a data set of the Hub, whose splits lie below ``data/hub/rows/`` as JSON lines once they are here."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from nora.config.own_model import as_name, as_written, place
from nora.config.own_model import is_hub_name as _is_name
from nora.config.pins import DOWNLOADS
from nora.config.schema import TaskSpec
from nora.errors import RunFailed, UserError, nearest, one_of
from nora.files import DamagedFile, Json, canonical_json, parse_json, read_bounded_lines, read_regular, sha256_file
from nora.tasks import own

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
_TEMPLATES = ("prompt", "response", "answer", "answer_after")
_OF_HUB = ("subset", "split", "test_split", "revision")
_SHARE = 5  # of the rows, one part in five is tested and one is dev, where nothing is typed


class Line(NamedTuple):
    """A row and where it stands: "line 3" of a text, "row 3" of another file."""

    where: str
    row: dict[str, Json]


def read(path: Path) -> list[Line]:
    """The rows of a file in their order; UserError for a line that is none, naming it, and for an empty file."""
    kind = next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), None)
    if kind is None or not path.is_file():
        raise UserError(f"task.file: given {path}, required a file of {', '.join(FORMATS)}")
    try:
        lines = list(_READERS[kind.removesuffix(".gz")](path))
    except (DamagedFile, UnicodeDecodeError, csv.Error, OSError, ValueError) as error:
        raise UserError(f"task.file: {str(error) if str(path) in str(error) else f'{path}: {error}'}") from None
    if not lines:
        raise UserError(f"task.file: {path} holds no row")
    for line in lines:
        if not isinstance(line.row, dict):
            raise UserError(f"task.file: {path}, {line.where}: given {str(line.row)[:40]}, required an object")
    return lines


def _json_lines(path: Path) -> Iterator[Line]:
    for number, text in enumerate(read_bounded_lines(path), start=1):
        if text.strip():
            yield Line(f"line {number}", parse_json(text, where=f"{path}, line {number}"))


def _json(path: Path) -> Iterator[Line]:
    rows = parse_json(read_regular(path, follow=True), where=path)
    if not isinstance(rows, list):
        raise ValueError("given an object, required a list of rows")
    yield from (Line(f"row {number}", row) for number, row in enumerate(rows, start=1))


def _separated(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise ValueError(f"line {reader.line_num}: not the {columns} values that the first line names")
            yield Line(f"line {reader.line_num}", row)


def _parquet(path: Path) -> Iterator[Line]:
    try:
        from pyarrow.parquet import read_table
    except ImportError:
        raise UserError("task.file: reading .parquet takes the package pyarrow; pip install pyarrow") from None
    for number, row in enumerate(read_table(path).to_pylist(), start=1):
        yield Line(f"row {number}", json.loads(json.dumps(row, default=str)))


_READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _separated, ".tsv": _separated, ".parquet": _parquet}


def _unescaped(text: str) -> str:
    r"""``\n`` and ``\t`` as they are typed in a shell; ``\\`` is a backslash."""
    for number, part in enumerate(parts := text.split("\\\\")):
        parts[number] = part.replace("\\n", "\n").replace("\\t", "\t")
    return "\\".join(parts)


def found(task: Mapping[str, Json], checkout: Path) -> dict[str, Json]:
    """A task with ``source: file`` as its spec has it: names, labels, numbers of rows and hashes filled in.

    UserError with what is wrong with its rows: a field that is missing (with its line), an empty file or text, an id or
    a question twice, a test label that no training row has.
    """
    given = {key: value for key, value in task.items() if value is not None}
    needed = {"prompt": "a template with {fields}", "metric": "a name", "suite": "choice or instruct"}
    for key, kind in {"file": f"a file of {', '.join(FORMATS)}", **needed}.items():
        if not isinstance(given.get(key), str):
            raise UserError(f"task.{key}: given {given.get(key)!r}, required {kind}")
    one_of("task.suite", given["suite"], list(own.METRICS))
    one_of("task.metric", given["metric"], own.METRICS[given["suite"]])
    foreign = {"choice": ("response", "answer", "answer_after"), "instruct": ("label", "labels", "candidates")}
    for key in foreign[given["suite"]]:
        if key in given:
            raise UserError(f"task.{key}: no meaning with task.suite={given['suite']}")
    key = {"choice": "label", "instruct": "response"}[given["suite"]]
    if key not in given:
        raise UserError(f"task.{key}: required with task.suite={given['suite']}")
    if "labels" in given and "candidates" in given:
        raise UserError("task.labels: given with task.candidates; required one of them")
    paths: dict[str, str] = {}
    if is_hub_name(given["file"], checkout):
        given["revision"], paths = _brought(given, checkout)
        given.setdefault("name", as_name(given["file"].rpartition("/")[2]))
    elif foreign_here := [key for key in _OF_HUB if key in given]:
        raise UserError(f"task.{foreign_here[0]}: no meaning with a file; task.file=OWNER/DATASET is one of the Hub")
    for key in ("file", "test_file"):
        if key in given and key not in paths:
            path = place(str(given[key]), checkout)
            if path is None:
                raise UserError(f"task.{key}: given {given[key]}, no such file (seen from {Path.cwd()})")
            paths[key] = str(path)
            given[key] = as_written(path, checkout)
    for key in _TEMPLATES:
        if isinstance(given.get(key), str):
            given[key] = _unescaped(given[key])
    if isinstance(given.get("labels"), Mapping):
        for label, text in given["labels"].items():
            if not isinstance(text, str):
                raise UserError(f"task.labels: {label}: given {text!r}, required a text (quote it: 'yes')")
        given["labels"] = {str(label): _unescaped(text) for label, text in given["labels"].items()}
    stats = tuple((path, Path(path).stat().st_mtime_ns, Path(path).stat().st_size) for path in paths.values())
    return dict(_checked(canonical_json(given), tuple(paths.items()), stats))


def is_hub_name(given: str, checkout: Path) -> bool:
    """Whether ``task.file`` means a data set of the Hub (OWNER/DATASET) and no file that lies here."""
    named = _is_name(given) and "/" in given and not given.lower().endswith(FORMATS)
    return named and place(given, checkout) is None


def hub_folder(repo: str, checkout: Path) -> Path:
    """Where a data set's commits are, and ``main``: the one that was its newest when it was brought."""
    return checkout / DOWNLOADS / "rows" / repo.replace("/", "--")


def hub_file(repo: str, revision: str, subset: str | None, split: str, checkout: Path) -> Path:
    """Where a split of a commit lies once it is here."""
    return hub_folder(repo, checkout) / revision / (subset or "default") / f"{split}.jsonl"


def hub_splits(task: Mapping[str, Json]) -> dict[str, str]:
    """The splits of a data set that are read: what is a file's "file" and its "test_file"."""
    named = {"file": str(task.get("split") or "train")}
    return {**named, "test_file": str(task["test_split"])} if task.get("test_split") else named


def hub_paths(task: Mapping[str, Json], checkout: Path) -> tuple[str, dict[str, Path]]:
    """The commit of a data set of the Hub ("" where none is known here) and where the splits that are read belong.
    UserError for keys that say no such place."""
    repo, newest = str(task["file"]), hub_folder(str(task["file"]), checkout) / "main"
    for key in ("subset", "split", "test_split"):
        if task.get(key) is not None and not re.fullmatch(r"\w[\w.-]*", str(task[key])):
            raise UserError(f"task.{key}: given {task[key]!r}, required a name of the data set's")
    if task.get("test_split") and task.get("test_file"):
        raise UserError("task.test_file: given with task.test_split; required one of them")
    revision = str(task.get("revision") or (newest.read_text(encoding="utf-8").strip() if newest.is_file() else ""))
    if revision and not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(f"task.revision: given {revision}, required a commit (40 hex digits): a branch or tag can move")
    subset = str(task["subset"]) if task.get("subset") else None
    splits = hub_splits(task)
    return revision, {key: hub_file(repo, revision, subset, split, checkout) for key, split in splits.items()}


def _brought(task: Mapping[str, Json], checkout: Path) -> tuple[str, dict[str, str]]:
    """The commit of a data set of the Hub and its splits' files; UserError where they are not here."""
    revision, paths = hub_paths(task, checkout)
    absent = [path.stem for path in paths.values() if not revision or not path.is_file()]
    if absent:
        raise UserError(
            f"task.file: given {task['file']}: no such file here, nor is {', '.join(absent)} of that data set"
            f"{f' at {revision}' if revision else ''}; `nora task show`, on a machine with network, brings it"
        )
    return revision, {key: str(path) for key, path in paths.items()}


@cache
def _checked(
    said: str, paths: tuple[tuple[str, str], ...], stats: tuple[tuple[str, int, int], ...]
) -> Mapping[str, Json]:
    del stats  # part of the key
    task: dict[str, Json] = json.loads(said)
    named = dict(paths)
    task.setdefault("name", as_name(Path(named["file"]).name.split(".")[0]))
    train = read(Path(named["file"]))
    test = read(Path(named["test_file"])) if "test_file" in named else []
    if task["suite"] == "choice" and "labels" not in task and "candidates" not in task:
        task["labels"] = {label: label for label in sorted(_labels(task, named["file"], train))}
    _check_rows(task, [(named["file"], train), *([(named["test_file"], test)] if test else [])])
    _count(task, len(train), len(test))
    hashes = {key: sha256_file(Path(path)) for key, path in paths}
    if task.get("files", hashes) != hashes:
        raise UserError(f"task.files: given {task['files']}, the files here have {hashes}")
    return {**task, "files": hashes}


def _labels(task: Mapping[str, Json], path: str, lines: Sequence[Line]) -> set[str]:
    try:
        found = {own.text_of(line.row, str(task.get("label"))) for line in lines}
    except ValueError as error:
        raise UserError(f"task.label: {path}: {error}") from None
    if len(found) > 100:
        raise UserError(f"task.label: {path}: {task.get('label')} has {len(found)} values, allowed 100 labels")
    return found


def _count(task: dict[str, Json], train: int, test: int) -> None:
    """num_train, num_dev and num_test where they are not typed; UserError where there are not so many."""
    part = max(1, train // _SHARE)
    wanted = {"num_test": test or part, "num_dev": part}
    for key in (*wanted, "num_train"):
        if key in task and (type(task[key]) is not int or task[key] < 1):
            raise UserError(f"task.{key}: given {task[key]!r}, required a whole number from 1 on")
        if key in wanted:
            task.setdefault(key, wanted[key])
    if test and task["num_test"] > test:
        raise UserError(f"task.num_test: {task['num_test']} rows are asked for, {test} are in task.test_file")
    left = train - task["num_dev"] - (0 if test else task["num_test"])
    if task.setdefault("num_train", max(left, 1)) > left:
        raise UserError(
            f"task.num_train: {task['num_train']} rows are asked for, {max(left, 0)} of {train} are left beside dev "
            "and test"
        )


def _check_rows(task: Mapping[str, Json], files: Sequence[tuple[str, Sequence[Line]]]) -> None:
    """UserError with the first problems of the rows, each with its line."""
    made = own.task_of(task)
    for key in _TEMPLATES[:3]:
        try:
            own.fields_of(task.get(key) or "")
        except ValueError as error:
            raise UserError(f"task.{key}: {error}") from None
    if not own.fields_of(task["prompt"]):
        raise UserError(f"task.prompt: given {task['prompt']!r}, required a template with at least one {{field}}")
    problems: list[str] = []
    asked: dict[str, str] = {}
    seen: list[set[str]] = []
    for number, (path, lines) in enumerate(files):
        name = Path(path).name
        ids = Counter[str]()
        labels: set[str] = set()
        for where, row in lines:
            at = f"{name}, {where}"
            try:
                question, right = _asked(made, row)
                if not question.strip():
                    raise ValueError("its prompt is empty")
                if number == 0 and question in asked:
                    raise ValueError(f"asks what {asked[question]} asks: what is tested would be trained on")
                if number == 1 and question in asked:
                    raise ValueError(f"asks what {asked[question]} asks: it is in training and in test")
                if number == 0:
                    asked[question] = at
                if number and seen[0] and right not in seen[0]:
                    raise ValueError(f"{task['label']} is {right!r}, which no row of {Path(files[0][0]).name} has")
                labels |= {right} if right is not None else set()
                key = task.get("id") or "id"
                if key in row or "id" in task:
                    ids[own.text_of(row, key)] += 1
                    if ids[own.text_of(row, key)] == 2:
                        raise ValueError(f"{key} {own.text_of(row, key)!r} is there twice")
            except ValueError as error:
                problems.append(f"{at}: {error}{_near(str(error), row)}")
        seen.append(labels)
    if not problems and seen[0] and len(seen[0]) < 2:
        problems = [f"every row's {task['label']} is {', '.join(seen[0])}; required two labels at least"]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"task.file: {'; '.join(problems[:3])}{more}")


def _asked(made: Any, row: Mapping[str, Json]) -> tuple[str, str | None]:
    """What a row asks, its candidates with it, and its label where labels are shared."""
    if isinstance(made, own.Choice):
        example = made.build(row)
        asks = example.prompt if made.candidates is None else canonical_json([example.prompt, list(example.candidates)])
        return asks, None if made.candidates else own.text_of(row, made.label)
    instruction = made.training(row, made.name)
    if not instruction.target.strip() or not instruction.answer:
        raise ValueError("its response or answer is empty")
    return str(instruction.prompt), None


def _near(error: str, row: Mapping[str, Json]) -> str:
    lacks = error.removeprefix("lacks ").partition(";")[0]
    near = nearest(lacks, list(map(str, row))) if error.startswith("lacks ") else ""
    return f"; {near}" if near else ""


def splits(spec: TaskSpec, checkout: Path) -> tuple[list[Json], list[Json]]:
    """The rows to train and choose on, and those to test on: of the test file, or of the one file, those whose hashes
    come first, the same for every seed and any order of the file. RunFailed where a file is not what was hashed."""
    files = {key: checkout / str(getattr(spec, key)) for key in ("file", "test_file") if getattr(spec, key) is not None}
    if spec.revision is not None:
        said = {"split": spec.split, "test_split": spec.test_split}
        for key, split in hub_splits(said).items():
            files[key] = hub_file(str(spec.file), spec.revision, spec.subset, split, checkout)
    rows = []
    for key, path in files.items():
        if not path.is_file() or sha256_file(path) != (spec.files or {}).get(key):
            raise RunFailed(f"{path}: not the file that was hashed when the run was planned; plan it again")
        rows.append([line.row for line in read(path)])
    *pool, held = rows
    ranked = sorted(held, key=lambda row: hashlib.sha256(canonical_json(row).encode()).digest())[: spec.num_test]
    if pool:
        return pool[0], ranked
    tested = {id(row) for row in ranked}
    return [row for row in held if id(row) not in tested], ranked

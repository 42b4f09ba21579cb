"""The rows of a task: from data/ at mini scale, from the Hub or the pinned downloads at paper scale; checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from transformers import PreTrainedTokenizerBase

from nora import streams
from nora.config.own_rows import splits as own_splits
from nora.config.pins import DOWNLOADS, HELD_OUT, WINDOW, check_files
from nora.config.schema import TaskSpec
from nora.errors import RunFailed
from nora.files import DamagedFile, Json, canonical_json, parse_json, read_bounded_lines, sha256_file
from nora.tasks.instruction import Instruction
from nora.tasks.sampling import Subsets, draw_subsets


def read_lines(path: Path) -> list[Json]:
    """The rows of a JSON-lines file, compressed (.gz) or not; RunFailed naming the line that is none."""
    try:
        lines = enumerate(read_bounded_lines(path), start=1)
        rows = [parse_json(line, where=f"{path}, line {number}") for number, line in lines]
    except DamagedFile as error:
        raise RunFailed(str(error)) from None
    if not rows:
        raise RunFailed(f"{path}: holds no row")
    return rows


_WINDOWS = 64


def held_out_windows(tokenizer: PreTrainedTokenizerBase, bos: int | None, checkout: Path) -> torch.Tensor:
    """Token ids [64, 128] of a book no task has anything to do with, its paragraphs end to end; each window begins with
    the base's first token, if it has one. RunFailed if the file is not what its hash says."""
    check_files(checkout / "data", HELD_OUT)
    texts = [row["text"] for name in HELD_OUT for row in read_lines(checkout / "data" / name)]
    ids: list[int] = tokenizer("\n\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"]
    start = [] if bos is None else [bos]
    room = WINDOW - len(start)
    count = min(_WINDOWS, len(ids) // room)
    return torch.tensor([[*start, *ids[i * room : (i + 1) * room]] for i in range(count)])


def rows_hash(rows: Iterable[Json]) -> str:
    """SHA-256 of rows as they were read, whatever file or cache they lay in."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical_json(row).encode() + b"\n")
    return digest.hexdigest()


def check_rows(rows: Sequence[Json], name: str, expected: int, files: Mapping[str, str] | None) -> None:
    """RunFailed if a split of the Hub has not the protocol's number of rows, or not the rows that were fetched."""
    if len(rows) != expected:
        raise RunFailed(f"{name}: has {len(rows)} rows, the protocol expects {expected}")
    pinned = (files or {}).get(name)
    if pinned is not None and rows_hash(rows) != pinned:
        raise RunFailed(f"{name}: the rows have SHA-256 {rows_hash(rows)}, conf/revisions.lock says {pinned}")


def load_rows(spec: TaskSpec, task: ModuleType, checkout: Path) -> tuple[list[Json], list[Json]]:
    """The training and validation rows, from a file of one's own, data/ or the Hub, their hashes or counts checked."""
    if spec.source == "file":
        return own_splits(spec, checkout)
    if spec.source != "hub":
        train, test = _shipped(spec, checkout, ("train", "validation"))
        return train, test
    from datasets import load_dataset

    source = task.SOURCE
    splits = []
    for split, expected in ((source.train, source.num_train_rows), (source.test, source.num_test_rows)):
        rows = list(load_dataset(source.path, source.name, split=split, revision=spec.revision))
        check_rows(rows, f"{spec.name}/{split}", expected, spec.files)
        splits.append(rows)
    return splits[0], splits[1]


def _shipped(spec: TaskSpec, checkout: Path, names: Sequence[str]) -> list[list[Json]]:
    """The rows of files of a task in data/ (slice) or data/small/ (small), once all its files have been checked."""
    folder = checkout / "data"
    check_files(folder, spec.files or {})
    folder, suffix = (folder / "small", ".jsonl.gz") if spec.source == "small" else (folder, ".jsonl")
    return [read_lines(folder / spec.name / f"{name}{suffix}") for name in names]


def few_shot_rows(spec: TaskSpec, task: ModuleType, checkout: Path, *, seed: int) -> Subsets:
    """The seed's training, dev and test rows of a few-shot task."""
    train, test = load_rows(spec, task, checkout)
    return draw_subsets(train, test, seed=seed, num_train=spec.num_train, num_dev=spec.num_dev, num_test=spec.num_test)


@dataclass(frozen=True)
class Rows:
    """What is trained on, what the dev loss is taken of, what is answered; ``dev_questions`` where dev is answered."""

    train: list[Instruction]
    dev: list[Instruction]
    test: list[Instruction]
    dev_questions: list[Instruction]


def load_instruct_rows(spec: TaskSpec, task: ModuleType, checkout: Path, *, seed: int) -> Rows:
    """The seed's rows. RunFailed where a file is missing or has not the rows the protocol names."""
    read = _own if spec.source == "file" else _commonsense if spec.name == "commonsense" else _math
    try:
        return read(spec, task, checkout, seed)
    except ValueError as error:
        raise RunFailed(str(error)) from None


def _shuffled(rows: list[Json], seed: int) -> list[Json]:
    order = torch.randperm(len(rows), generator=streams.generator(seed, "rows"))
    return [rows[i] for i in order.tolist()]


def _take(rows: list[Json], count: int, what: str) -> list[Json]:
    if len(rows) < count:
        raise RunFailed(f"{what}: {count} rows are asked for, {len(rows)} are there")
    return rows[:count]


def _commonsense(spec: TaskSpec, task: ModuleType, checkout: Path, seed: int) -> Rows:
    """The mixture shuffled by the seed; its first rows are dev, the next ones training. Tests are each set's first."""
    pool: list[tuple[dict[str, Json], str]] = []
    test: list[Instruction] = []
    if spec.source != "hub":
        shipped = _shipped(spec, checkout, [f"{name}.{part}" for name in task.SETS for part in ("train", "test")])
        for name, train, rows in zip(task.SETS, shipped[::2], shipped[1::2], strict=True):
            pool += [(row, name) for row in train]
            test += [task.testing(row, name) for row in rows[: spec.num_test]]
    else:
        root = checkout / DOWNLOADS / str(spec.revision)
        check_files(root, spec.files or {})
        pool = [(row, "mixture") for row in _counted(root / task.TRAIN_FILE, task.NUM_TRAIN_ROWS)]
        for name, own in task.SETS.items():
            rows = _counted(root / task.TEST_FILE.format(folder=own.folder), own.num_test_rows)
            test += [task.testing(row, name) for row in rows[: spec.num_test]]
    mixed = _take(_shuffled(pool, seed), spec.num_dev + spec.num_train, spec.name)
    made = [task.training(row, name) for row, name in mixed]
    return Rows(made[spec.num_dev :], made[: spec.num_dev], test, [])


def _own(spec: TaskSpec, task: ModuleType, checkout: Path, seed: int) -> Rows:
    """The training rows shuffled by the seed; the first ones are dev. What is tested is the same for every seed."""
    pool, tested = load_rows(spec, task, checkout)
    mixed = [
        task.training(row, spec.name) for row in _take(_shuffled(pool, seed), spec.num_dev + spec.num_train, spec.name)
    ]
    test = [task.testing(row, spec.name) for row in tested[: spec.num_test]]
    return Rows(mixed[spec.num_dev :], mixed[: spec.num_dev], test, [])


def _math(spec: TaskSpec, task: ModuleType, checkout: Path, seed: int) -> Rows:
    """MetaMathQA's first rows; dev is drawn from GSM8K's training set, trained on by nobody."""
    if spec.source != "hub":
        train, held, test = _shipped(spec, checkout, ("standin", "train", "test"))
    else:
        train, held, test = _from_hub(spec, task)
    train = _take(train, spec.num_train, "MetaMathQA")
    questions = [task.testing(row, "gsm8k") for row in _take(_shuffled(held, seed), spec.num_dev, "GSM8K train")]
    tests = [task.testing(row, "gsm8k") for row in test[: spec.num_test]]
    return Rows([task.training(row, "metamath") for row in train], questions, tests, questions)


def _from_hub(spec: TaskSpec, task: ModuleType) -> tuple[list[Json], list[Json], list[Json]]:
    from datasets import load_dataset

    commits = dict(zip(task.SOURCES, str(spec.revision).split("+"), strict=True))
    found = []
    for source, split, expected in (
        ("train", task.SOURCES["train"].train, task.SOURCES["train"].num_train_rows),
        ("test", task.SOURCES["test"].train, task.SOURCES["test"].num_train_rows),
        ("test", task.SOURCES["test"].test, task.SOURCES["test"].num_test_rows),
    ):
        where = task.SOURCES[source]
        rows = list(load_dataset(where.path, where.name, split=split, revision=commits[source]))
        check_rows(rows, f"{where.path}/{split}", expected, spec.files)
        found.append(rows)
    return found[0], found[1], found[2]


def _counted(path: Path, rows: int) -> list[Json]:
    if not path.is_file():
        raise RunFailed(f"{path}: missing; run `nora prefetch` for its table first, on a machine with network")
    data = json.loads(path.read_text(encoding="utf-8"))
    if len(data) != rows:
        raise RunFailed(f"{path} (sha256 {sha256_file(path)}): has {len(data)} rows, the protocol expects {rows}")
    return list(data)

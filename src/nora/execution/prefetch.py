"""``nora prefetch TARGET…``: names resolved once to commits, files and rows brought here, all written to the lock.

What the lock pins already is brought by its commit and compared: a colleague's clone, a cache that was cleared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nora import tasks
from nora.config import own_rows
from nora.config.own_model import PIPELINE
from nora.config.pins import DOWNLOADS, MODEL_FILES, PIPELINE_FILES, how_to_unlock, model_hashes, picture_hashes
from nora.errors import RunFailed, UserError
from nora.files import DamagedFile, read_json, sha256_bytes, sha256_file, write_atomic
from nora.kinds import DreamboothSpec, FinetuneSpec, Spec, dreambooth

LOCK = Path("conf") / "revisions.lock"


Pinned = Mapping[str, Any] | None
"""What the lock says about an item, None where it does not."""


class Wanted(NamedTuple):
    """What some specs read of the Hub."""

    models: set[str]
    pipelines: set[str]
    tasks: set[tuple[str, str]]
    """Suite and name."""
    pictures: set[str]
    """Data sets of pictures."""


def wanted(specs: Iterable[Spec]) -> Wanted:
    """Models, pipelines, tasks and pictures that some specs read of the Hub."""
    found = Wanted(set(), set(), set(), set())
    for spec in specs:
        if not isinstance(spec, FinetuneSpec | DreamboothSpec):
            continue
        diffusion = isinstance(spec, DreamboothSpec)
        if spec.model.source == "hub" and spec.model.weights == "pretrained":
            (found.pipelines if diffusion else found.models).add(str(spec.model.repo))
        if isinstance(spec, DreamboothSpec):
            found.models.update(e.repo for e in dreambooth.encoders(spec) if e.source == "hub")
            if spec.task.source == "hub":
                found.pictures.add(str(spec.task.repo))
        elif spec.task.source == "hub":
            found.tasks.add((spec.task.suite, spec.task.name))
    return found


def _commit(pinned: Pinned) -> str | None:
    return str(pinned["commit"]) if pinned else None


def refused(error: Exception, what: str) -> Exception:
    """What to raise where the Hub does not give a repository: gated, not there, out of reach."""
    name = type(error).__name__
    if name == "GatedRepoError":
        return UserError(f"{what}: gated; {how_to_unlock(what)}")
    if name == "RepositoryNotFoundError":
        return UserError(f"{what}: no such repository on the Hub, or it is private and HF_TOKEN is not set")
    url = getattr(getattr(error, "response", None), "url", None)  # which of its files, where the Hub answered
    said = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return RunFailed(f"{what}: {name}: {said}{f' ({url})' if url else ''}")


def fetched(repo: str, patterns: Sequence[str], pinned: Pinned = None) -> dict[str, Any]:
    """Brings a model's files of one commit; their names with their hashes, compared with what the Hub says."""
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(repo, revision=_commit(pinned), files_metadata=True)
    twice = any(file.rfilename.endswith(".safetensors") for file in info.siblings or ())
    wanted = [pattern for pattern in patterns if not (twice and pattern == "*.bin")]  # the same weights again
    folder = snapshot_download(repo, revision=info.sha, allow_patterns=wanted)
    files = model_hashes(Path(folder), repo, ".")
    _check_content(Path(folder), repo, files, info.siblings or ())
    return {"commit": info.sha, "files": files}


def fetched_model(repo: str) -> str:
    """Brings a model of one's own, a causal language model or a pipeline; its commit."""
    from huggingface_hub import HfApi

    names = {file.rfilename for file in HfApi().model_info(repo).siblings or ()}
    patterns = PIPELINE_FILES if PIPELINE in names else [name for name in MODEL_FILES if name != "*.bin"]
    return str(fetched(repo, patterns)["commit"])


def _check_content(folder: Path, repo: str, files: Mapping[str, str], siblings: Iterable[Any]) -> None:
    """RunFailed where a file is not what the Hub says of its commit (its SHA-256, or git's blob id): the download
    compares sizes alone. What is wrong is removed, so that the next try brings it again."""
    for said in siblings:
        given = files.get(said.rfilename)
        path = folder / said.rfilename
        if given is None:
            continue
        expected = said.lfs.sha256 if said.lfs else said.blob_id
        if not said.lfs:
            data = path.read_bytes()
            given = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if expected is not None and given != expected:
            path.resolve().unlink()
            path.unlink()
            raise RunFailed(f"{repo}: {said.rfilename} came as {given}, the Hub says {expected}; removed, repeat")


def _pictures_entry(repo: str, pinned: Pinned = None) -> dict[str, Any]:
    from huggingface_hub import HfApi, snapshot_download

    commit = HfApi().dataset_info(repo, revision=_commit(pinned)).sha
    folder = snapshot_download(repo, repo_type="dataset", revision=commit)
    return {"commit": commit, "files": picture_hashes(Path(folder))}


def _task_entry(suite: str, name: str, pinned: Pinned = None) -> dict[str, Any]:
    from datasets import load_dataset
    from huggingface_hub import HfApi

    from nora.kinds.parts.rows import check_rows, rows_hash

    source = tasks.load(suite, name).SOURCE
    commit = HfApi().dataset_info(source.path, revision=_commit(pinned)).sha
    files = {}
    for split, expected in ((source.train, source.num_train_rows), (source.test, source.num_test_rows)):
        rows = list(load_dataset(source.path, source.name, split=split, revision=commit))
        check_rows(rows, f"{name}/{split}", expected, None)
        files[f"{name}/{split}"] = rows_hash(rows)
    return {"path": source.path, "name": source.name, "commit": commit, "files": files}


def _instruct_entry(name: str, checkout: Path, pinned: Pinned = None) -> dict[str, Any]:
    """GitHub files at the task's own commit, or two Hub data sets joined by "+"; row counts checked."""
    task = tasks.load("instruct", name)
    if name == "commonsense":
        return _github_files(task, checkout, pinned)
    from datasets import load_dataset
    from huggingface_hub import HfApi

    from nora.kinds.parts.rows import check_rows, rows_hash

    commits: list[str] = []
    files = {}
    known = str(pinned["commit"]).split("+") if pinned else [None] * len(task.SOURCES)
    for source, revision in zip(task.SOURCES.values(), known, strict=True):
        commits.append(str(HfApi().dataset_info(source.path, revision=revision).sha))
        for split, expected in {source.train: source.num_train_rows, source.test: source.num_test_rows}.items():
            rows = list(load_dataset(source.path, source.name, split=split, revision=commits[-1]))
            check_rows(rows, f"{source.path}/{split}", expected, None)
            files[f"{source.path}/{split}"] = rows_hash(rows)
    return {"path": " + ".join(s.path for s in task.SOURCES.values()), "commit": "+".join(commits), "files": files}


def _github_files(task: Any, checkout: Path, pinned: Pinned) -> dict[str, Any]:
    from urllib.request import urlopen

    wanted = {task.TRAIN_FILE: task.NUM_TRAIN_ROWS}
    wanted |= {task.TEST_FILE.format(folder=one.folder): one.num_test_rows for one in task.SETS.values()}
    hashes = {}
    for path, rows in wanted.items():
        target = checkout / DOWNLOADS / task.COMMIT / path
        if pinned and target.is_file() and sha256_file(target) == pinned["files"].get(path):
            hashes[path] = pinned["files"][path]
            continue
        with urlopen(f"https://raw.githubusercontent.com/{task.REPOSITORY}/{task.COMMIT}/{path}", timeout=60) as answer:
            data = answer.read()
        found = len(json.loads(data))
        if found != rows:
            raise RunFailed(f"{path}: has {found} rows, the protocol expects {rows}")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data)
        hashes[path] = sha256_bytes(data)
    return {"path": task.REPOSITORY, "commit": task.COMMIT, "files": hashes}


def fetched_rows(task: Mapping[str, Any], checkout: Path) -> str:
    """Brings the splits that a task with ``file: OWNER/DATASET`` reads, as JSON lines below data/hub/rows/; a line that
    says so. UserError for a data set, a subset or a split that is not there."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    repo, typed = str(task["file"]), task.get("revision")
    counts = []
    try:
        commit = str(HfApi().dataset_info(repo, revision=typed).sha)
        for split in own_rows.hub_splits(task).values():
            rows = load_dataset(repo, task.get("subset"), split=split, revision=commit)
            path = own_rows.hub_file(repo, commit, task.get("subset"), split, checkout)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            write_atomic(path, text)
            counts.append(f"{split} {len(rows)} rows")
    except ValueError as error:  # of datasets: it names the subsets or the splits there are
        raise UserError(f"task.file: {repo}: {' '.join(str(error).split())[:300]}") from None
    except Exception as error:
        raise refused(error, repo) from None
    if not typed:
        write_atomic(own_rows.hub_folder(repo, checkout) / "main", commit + "\n")
    return f"data set {repo}: {', '.join(counts)}, commit {commit} (revision: {commit} in its yaml keeps it)"


def prefetch(specs: Iterable[Spec], checkout: Path, *, dry_run: bool) -> list[str]:
    """Resolves and downloads what is not in the lock yet, downloads by its commit what is; one line per item. Every
    item is written as it succeeds."""
    path = checkout / LOCK
    try:
        lock = read_json(path, dict.fromkeys(("models", "tasks", "pictures"), (dict,)), follow=True)
    except DamagedFile as error:
        raise UserError(str(error)) from None
    found = wanted(specs)
    items: list[tuple[str, str, Callable[[Pinned], dict[str, Any]]]] = []
    items += [("models", repo, partial(fetched, repo, MODEL_FILES)) for repo in sorted(found.models)]
    items += [("models", repo, partial(fetched, repo, PIPELINE_FILES)) for repo in sorted(found.pipelines)]
    items += [
        (
            "tasks",
            name,
            partial(_instruct_entry, name, checkout) if suite == "instruct" else partial(_task_entry, suite, name),
        )
        for suite, name in sorted(found.tasks)
    ]
    items += [("pictures", repo, partial(_pictures_entry, repo)) for repo in sorted(found.pictures)]
    lines = []
    for group, key, resolve in items:
        pinned: Pinned = lock.get(group, {}).get(key)
        if dry_run and pinned:
            lines.append(f"{key}: pinned to {pinned['commit']}; what of it is not here would be downloaded")
            continue
        if dry_run:
            lines.append(f"{key}: would be resolved and downloaded")
            continue
        try:
            entry = resolve(pinned)
        except (UserError, RunFailed):
            raise
        except Exception as error:  # the Hub's client raises many kinds; each becomes one line
            raise refused(error, key) from None
        if pinned and entry != pinned:
            raise RunFailed(f"{key}: commit {pinned['commit']} is not what {LOCK} says it is: given {entry}")
        if not pinned:
            lock.setdefault(group, {})[key] = entry
            write_atomic(path, json.dumps(lock, indent=1, sort_keys=True) + "\n")
        lines.append(f"{key}: pinned to {entry['commit']}")
    return lines

"""results/submissions/<id>/: which runs go into which array, and what was submitted, frozen, its code beside it."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nora.config.pins import DOWNLOADS
from nora.config.schema import ExecSpec, validate
from nora.config.spec import run_id, spec_dict
from nora.errors import RunFailed, UserError
from nora.execution import provenance
from nora.files import DamagedFile, Json, canonical_json, read_json, sha256_bytes, sha256_file, write_atomic
from nora.kinds import AnySpec, FactorizeSpec, read_spec
from nora.launch import slurm
from nora.launch.banks import in_banks
from nora.launch.profile import Profile, Resources
from nora.tables.cell import Cell


@dataclass(frozen=True)
class Array:
    """One sbatch: tasks of equal resources, each a fixed list of run ids."""

    label: str
    """The resource class: kind and base model."""
    resources: Resources
    tasks: tuple[tuple[str, ...], ...]

    @property
    def num_runs(self) -> int:
        return sum(len(ids) for ids in self.tasks)

    def to_dict(self) -> dict[str, Json]:
        """As plain data."""
        return {"label": self.label, "resources": vars(self.resources), "tasks": [list(ids) for ids in self.tasks]}


def class_of(cell: Cell[AnySpec]) -> tuple[str, str | None]:
    """Kind and base model: runs that share them are given the same resources."""
    assert cell.spec is not None
    return cell.spec.kind, None if isinstance(cell.spec, FactorizeSpec) else cell.spec.model.name


def layout(cells: Sequence[Cell[AnySpec]], profile: Profile, settings: ExecSpec | None = None) -> list[Array]:
    """Arrays in the order of the cells: one per resource class, cut at ``max_array_size``; a run listed once.

    A task is a bank where runs can share a step and a GPU is there for it (or ``exec.bank`` is given); the others go by
    ``runs_per_task``.
    """
    classes: dict[tuple[str, str | None], dict[str, Cell[AnySpec]]] = {}
    for cell in cells:
        if cell.id is not None:
            classes.setdefault(class_of(cell), {}).setdefault(cell.id, cell)
    arrays = []
    for (kind, model), own in classes.items():
        resources = profile.resources_of(kind, model)
        ids, size = list(own), profile.runs_per_task
        banks: list[list[int]] = []
        if settings is not None and (resources.gpus or settings.bank):
            banks = in_banks([cell.spec for cell in own.values()], settings, on_gpu=bool(resources.gpus))
            banks = [bank for bank in banks if len(bank) > 1]
        banked = {place for bank in banks for place in bank}
        alone = [identity for place, identity in enumerate(ids) if place not in banked]
        tasks = [tuple(ids[place] for place in bank) for bank in banks]
        tasks += [tuple(alone[i : i + size]) for i in range(0, len(alone), size)]
        for start in range(0, len(tasks), profile.max_array_size):
            chunk = tuple(tasks[start : start + profile.max_array_size])
            arrays.append(Array(f"{kind}/{model}" if model else kind, resources, chunk))
    return arrays


_LEFT_OUT = (":!results", ":!tests", ":!benchmarks")


def snapshot_code(checkout: Path, results: Path) -> tuple[Path, str]:
    """The folder with the checkout's commit and the configs, rows and assets that git does not know yet (in the
    folder's name by their hashes), and the commit. UserError where the code or a tracked file differs from it."""
    version = provenance.code_version(checkout)
    commit: str = version["commit"]
    if commit == provenance.UNKNOWN:
        raise UserError(f"exec.code=snapshot: no commit is known ({version['git']}); use exec.code=live")
    changed = provenance.changes(checkout)
    tracked = [path for letters, path in changed if letters != "??"]
    code = [path for letters, path in changed if letters == "??" and (path.startswith("src/") or path.endswith("/"))]
    if tracked or code:
        what = "a tracked file differs from the last commit" if tracked else "code that is in no commit"
        raise UserError(
            f"exec.code=snapshot: {what}: {', '.join((tracked or code)[:5])}; commit it, or use exec.code=live "
            "(jobs then run whatever the checkout holds when they start)"
        )
    carried = {path: sha256_file(checkout / path) for _, path in changed}
    name = commit[:16] + (f"-{sha256_bytes(canonical_json(carried).encode())[:8]}" if carried else "")
    folder = results / "snapshots" / name
    if (folder / provenance.SNAPSHOT).is_file():
        return folder, commit
    made = folder.parent / f".tmp-{secrets.token_hex(8)}"
    made.mkdir(parents=True)
    try:
        archive = provenance.git(checkout, "archive", commit, "--", ".", *_LEFT_OUT)
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(made, filter="data")
        for path in carried:
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / path, made / path)
        (made / DOWNLOADS).parent.mkdir(exist_ok=True)
        (made / DOWNLOADS).symlink_to(checkout / DOWNLOADS)  # in no commit; named by theirs, rows counted when read
        own = {"commit": commit, "dirty": bool(carried), **({"changed": carried} if carried else {})}
        write_atomic(made / provenance.SNAPSHOT, json.dumps(own))
        try:
            os.rename(made, folder)
        except OSError:
            if not (folder / provenance.SNAPSHOT).is_file():  # not another launch's, made meanwhile
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder, commit


_LOG = logging.getLogger(__name__)
FOLDER = "submissions"
_FROZEN = ("submission.json", "submission.copy.json")
"""Twice the same: of one that is cut short its jobs can still be told, and run."""


@dataclass(frozen=True)
class Submission:
    """One call of ``nora launch exec=slurm``: its frozen content and the jobs it became."""

    folder: Path
    content: Mapping[str, Json]

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def arrays(self) -> Sequence[Mapping[str, Json]]:
        arrays: Sequence[Mapping[str, Json]] = self.content["arrays"]
        return arrays

    @property
    def requeue(self) -> bool:
        """Whether a job that is told to stop goes back into the queue."""
        return bool(self.content.get("requeue", True))

    def job_name(self, array: int) -> str:
        """Unique: by it an array is found in the queue when its number was never written down."""
        return f"nora-{self.content['target']}-{self.id}-{array}"

    def note(self, array: int) -> dict[str, str]:
        """What was written down when SLURM took an array: number, cluster, user; {} where nothing was."""
        try:
            note = read_json(self.folder / f"array-{array}.json", {})
        except (FileNotFoundError, DamagedFile):
            return {}
        if note.get("of", self.job_name(array)) != self.job_name(array):
            _LOG.warning("%s: foreign (the note of %s): left out", self.folder / f"array-{array}.json", note["of"])
            return {}
        return {key: str(value) for key, value in note.items()}

    def job(self, array: int) -> str | None:
        """SLURM's number of an array, None where it was not written down."""
        return self.note(array).get("job")

    def write_job(self, array: int, job: str) -> None:
        """Notes that an array was accepted by SLURM, by this cluster, from this user."""
        note = {"of": self.job_name(array), "job": job, "cluster": slurm.cluster(), "user": slurm.this_user()}
        write_atomic(self.folder / f"array-{array}.json", json.dumps(note))

    def spec(self, identity: str) -> AnySpec:
        """The frozen spec of a run; RunFailed where it is not what its id says."""
        entry = self.content["runs"][identity]
        spec = read_spec(entry["spec"])
        if run_id(spec) != identity:
            raise RunFailed(f"{self.folder}: the frozen spec of {identity} has the id {run_id(spec)}; launch again")
        return spec

    def settings(self) -> ExecSpec:
        """How its runs are executed."""
        return validate(self.content["exec"], ExecSpec, prefix="exec.")


def create(
    results: Path,
    *,
    target: str,
    arrays: Sequence[Array],
    cells: Mapping[str, Cell[AnySpec]],
    dead_up_to: Mapping[str, int],
    failures_allowed: Mapping[str, int],
    settings: ExecSpec,
    code: Path,
    commit: str,
    requeue: bool,
) -> Submission:
    """Freezes what is about to be submitted. ``dead_up_to``: per run the last attempt that SLURM says is dead;
    ``failures_allowed``: how often it may have failed before a node leaves it alone; ``requeue``: whether a job that
    is told to stop goes back into the queue."""
    root = results / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    while True:
        folder = root / secrets.token_hex(4)
        try:
            folder.mkdir()
            break
        except FileExistsError:
            continue
    content = {
        "id": folder.name,
        "target": target,
        "results": str(results.resolve()),
        "code": str(code.resolve()),
        "commit": commit,
        "requeue": requeue,
        "exec": asdict(settings),
        "arrays": [array.to_dict() for array in arrays],
        "runs": {
            identity: {
                "spec": spec_dict(spec),
                "tags": [cells[identity].table, cells[identity].scale],
                "dead_up_to": dead_up_to[identity],
                "failures_allowed": failures_allowed[identity],
            }
            for array in arrays
            for ids in array.tasks
            for identity in ids
            if (spec := cells[identity].spec) is not None
        },
    }
    body = {"content": content, "sha256": sha256_bytes(canonical_json(content).encode())}
    for name in _FROZEN:
        write_atomic(folder / name, json.dumps(body, indent=1))
    return Submission(folder, content)


def load(folder: Path) -> Submission:
    """A submission by its folder, from its copy where the first file is cut short; RunFailed where it is not what was
    frozen."""
    problem = ""
    for name in _FROZEN:
        try:
            body = read_json(folder / name, {"content": (dict,), "sha256": (str,)})
            intact = sha256_bytes(canonical_json(body["content"]).encode()) == body["sha256"]
        except DamagedFile as error:
            problem = problem or str(error)
            continue
        except (OSError, KeyError) as error:
            problem = problem or f"{folder / name}: unreadable ({error})"
            continue
        if not intact:
            raise RunFailed(f"{folder / name}: not what was frozen at launch (changed by hand or damaged)")
        if body["content"].get("id", folder.name) != folder.name:
            raise RunFailed(f"{folder / name}: foreign (the frozen content of submission {body['content']['id']})")
        return Submission(folder, body["content"])
    raise RunFailed(problem)


def submissions(results: Path) -> list[Submission]:
    """Every readable submission of a results folder; one without its frozen content was never given to SLURM."""
    found = []
    for folder in _frozen_folders(results):
        try:
            found.append(load(folder))
        except RunFailed:
            continue
    return found


def unreadable(results: Path) -> list[Path]:
    """The folders of submissions whose content is lost: what SLURM holds of them is known by name alone."""
    readable = {submission.folder for submission in submissions(results)}
    return [folder for folder in _frozen_folders(results) if folder not in readable]


def _frozen_folders(results: Path) -> list[Path]:
    return [path for path in sorted((results / FOLDER).glob("*")) if any((path / name).is_file() for name in _FROZEN)]


@contextmanager
def one_launch_at_a_time(results: Path) -> Iterator[None]:
    """Two launches on one store wait for each other. Where the file system has no locks, starting a run twice is still
    harmless: the second start sees the first."""
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield

"""results/submissions/<id>/: what was submitted, frozen. Written before sbatch is called, read by the compute node."""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nora.launch.layout import Array
from nora.runs.errors import RunFailed
from nora.runs.files import canonical_json, sha256_bytes, write_atomic
from nora.runs.schema import KINDS, ExecSpec, Spec, validate
from nora.runs.spec import run_id
from nora.tables.cells import Cell

FOLDER = "submissions"


@dataclass(frozen=True)
class Submission:
    """One call of ``nora launch exec=slurm``: its frozen content and the jobs it became."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def arrays(self) -> Sequence[Mapping[str, Any]]:
        arrays: Sequence[Mapping[str, Any]] = self.content["arrays"]
        return arrays

    @property
    def requeue(self) -> bool:
        """Whether a job that is told to stop goes back into the queue."""
        return bool(self.content.get("requeue", True))

    def job_name(self, array: int) -> str:
        """Unique: by it an array is found in the queue when its number was never written down."""
        return f"nora-{self.content['target']}-{self.id}-{array}"

    def job(self, array: int) -> str | None:
        """SLURM's number of an array, None where it was not written down."""
        try:
            return str(json.loads((self.folder / f"array-{array}.json").read_text())["job"])
        except FileNotFoundError:
            return None

    def write_job(self, array: int, job: str) -> None:
        """Notes that an array was accepted by SLURM."""
        write_atomic(self.folder / f"array-{array}.json", json.dumps({"job": job}))

    def spec(self, identity: str) -> Spec:
        """The frozen spec of a run; RunFailed where it is not what its id says."""
        entry = self.content["runs"][identity]
        spec: Spec = validate(entry["spec"], KINDS[entry["spec"]["kind"]])
        if run_id(spec) != identity:
            raise RunFailed(f"{self.folder}: the frozen spec of {identity} has the id {run_id(spec)}; launch again")
        return spec

    def settings(self) -> ExecSpec:
        """How its runs are executed."""
        settings: ExecSpec = validate(self.content["exec"], ExecSpec, prefix="exec.")
        return settings


def create(
    results: Path,
    *,
    target: str,
    arrays: Sequence[Array],
    cells: Mapping[str, Cell],
    dead_up_to: Mapping[str, int],
    failures_allowed: Mapping[str, int],
    settings: ExecSpec,
    code: Path,
    commit: str | None,
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
        "target": target,
        "results": str(results.resolve()),
        "code": str(code.resolve()),
        "commit": commit,
        "requeue": requeue,
        "exec": asdict(settings),
        "arrays": [array.to_dict() for array in arrays],
        "runs": {
            identity: {
                "spec": cells[identity].spec,
                "tags": [cells[identity].table, cells[identity].scale],
                "dead_up_to": dead_up_to[identity],
                "failures_allowed": failures_allowed[identity],
            }
            for array in arrays
            for ids in array.tasks
            for identity in ids
        },
    }
    body = {"content": content, "sha256": sha256_bytes(canonical_json(content).encode())}
    write_atomic(folder / "submission.json", json.dumps(body, indent=1))
    return Submission(folder, content)


def load(folder: Path) -> Submission:
    """A submission by its folder; RunFailed where it is not what was frozen."""
    try:
        body = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
        intact = sha256_bytes(canonical_json(body["content"]).encode()) == body["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFailed(f"{folder}/submission.json: unreadable ({error})") from None
    if not intact:
        raise RunFailed(f"{folder}/submission.json: not what was frozen at launch (changed by hand or damaged)")
    return Submission(folder, body["content"])


def submissions(results: Path) -> list[Submission]:
    """Every readable submission of a results folder; one without its frozen content was never given to SLURM."""
    found = []
    for folder in sorted((results / FOLDER).glob("*")):
        if (folder / "submission.json").is_file():
            try:
                found.append(load(folder))
            except RunFailed:
                continue
    return found


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

"""The record of a finished run: the only thing collation reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nora.config.spec import run_id, versionless_id
from nora.errors import UserError
from nora.files import DamagedFile, Json, canonical_json, parse_json, read_regular, readable_json, sha256_bytes

SCHEMA = 1
STATUSES = ("done", "diverged")


class DamagedRecord(Exception):
    """A record that cannot be trusted: unreadable, of a foreign schema, or not what its hashes say."""


class NewerRecord(UserError):
    """A record of a schema that this version does not know: nothing may repeat the run over it."""


@dataclass(frozen=True)
class Record:
    """``result``: spec, status, metrics, proof, hashes of the published files. ``run``: how it came about."""

    id: str
    result: Mapping[str, Json]
    run: Mapping[str, Json]
    run_is_hashed: bool = field(default=True, compare=False)
    """False: read from a file of before ``run`` had a hash, so that only types and ranges are known to be right."""
    folder: Path | None = field(default=None, compare=False)
    """Where it was read from: the files it names lie there."""

    @property
    def spec(self) -> Mapping[str, Json]:
        spec: Mapping[str, Json] = self.result["spec"]
        return spec

    @property
    def kind(self) -> str:
        return str(self.spec["kind"])

    @property
    def status(self) -> str:
        return str(self.result["status"])

    @property
    def metrics(self) -> Mapping[str, Json]:
        metrics: Mapping[str, Json] = self.result["metrics"]
        return metrics

    @property
    def versionless_id(self) -> str:
        return versionless_id(self.spec)

    @property
    def result_hash(self) -> str:
        """Of ``result``: two runs with one are the same."""
        return sha256_bytes(canonical_json(self.result).encode())

    def to_json(self) -> str:
        """The file's text; of its two hashes that of ``result`` makes two runs the same."""
        body = {
            "schema": SCHEMA,
            "id": self.id,
            "result": self.result,
            "result_sha256": self.result_hash,
            "run": self.run,
            "run_sha256": sha256_bytes(canonical_json(self.run).encode()),
        }
        return readable_json(body)


def parse_record(text: str | bytes, *, where: Path | str) -> Record:
    """The record in ``text``; DamagedRecord where it is not whole or altered, NewerRecord where a newer
    version wrote it."""

    try:
        body = parse_json(text, where=where, finite=False)  # canonical JSON below refuses what is not finite
    except DamagedFile as error:
        raise DamagedRecord(str(error)) from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        given = body.get("schema") if isinstance(body, dict) else type(body).__name__
        if isinstance(given, int) and given > SCHEMA:
            raise NewerRecord(
                f"{where}: written by a newer version: its schema is {given}, this version reads {SCHEMA}"
            )
        raise DamagedRecord(f"{where}: given schema {given!r}, this version reads {SCHEMA}")
    missing = [key for key in ("id", "result", "result_sha256", "run") if key not in body]
    if missing:
        raise DamagedRecord(f"{where}: lacks {', '.join(missing)}")
    if not isinstance(body["result"], dict):
        raise DamagedRecord(f"{where}: given a result of type {type(body['result']).__name__}, required an object")
    hashed = "run_sha256" in body
    for part in ("result", "run") if hashed else ("result",):
        try:
            digest = sha256_bytes(canonical_json(body[part]).encode())
        except ValueError as error:
            raise DamagedRecord(f"{where}: not valid JSON ({error})") from None
        if digest != body[f"{part}_sha256"]:
            raise DamagedRecord(f"{where}: the {part} is not what its hash says (changed by hand or damaged)")
    result = body["result"]
    unfit = [key for key in ("spec", "metrics", "proof", "files") if not isinstance(result.get(key), dict)]
    if not unfit and not isinstance(result["spec"].get("protocol"), dict):
        unfit = ["spec.protocol"]
    if not unfit and not isinstance(result["spec"].get("kind"), str):
        unfit = ["spec.kind"]
    if not unfit and not isinstance(result.get("status"), str):
        unfit = ["status"]
    if not unfit and not {"init", "passed"} <= set(result["proof"]):
        unfit = ["proof"]
    if not unfit and not _of_numbers(result["metrics"].get("test", {})):
        unfit = ["test scores"]
    if not unfit and not all(map(_is_file, result["files"].values())):
        unfit = ["files"]
    if not unfit and isinstance(body["run"], dict):
        unfit = [f"run.{key}" for key, value in body["run"].items() if not _fits_run(key, value)]
    if not unfit and result.get("status") == "diverged" and not _is_object(result.get("diverged"), "step", "tensor"):
        unfit = ["diverged"]
    if unfit or not isinstance(body["run"], dict) or not isinstance(body["id"], str):
        raise DamagedRecord(f"{where}: no record of a run: its {', '.join(unfit) or 'run or id'} cannot be read")
    record = Record(body["id"], result, body["run"], run_is_hashed=hashed)
    if run_id(record.spec) != record.id:
        raise DamagedRecord(f"{where}: its spec has the id {run_id(record.spec)}, the record says {record.id}")
    if record.status not in STATUSES:
        raise DamagedRecord(f"{where}: given status {record.status!r}, allowed {', '.join(STATUSES)}")
    return record


_YEAR = 366 * 86400.0
_COUNTS = ("attempt", "cpus", "threads", "encoded_crops", "micro_batch_size", "resumed_at_step")
_TEXTS = ("commit", "cpu", "device", "host", "machine", "python", "job", "git", "version", "files_sha256", "merged_in")


def _fits_run(key: str, value: Json) -> bool:
    """Whether a part of ``run`` has a type and a size that it can have: what is read of it is in no table's number, and
    in costs and exports."""
    if key in ("resumed_at_step", "job", "dirty") and value is None:
        return True
    if key in _COUNTS:
        return type(value) is int and 0 <= value < 1 << 31
    if key == "started":
        return type(value) in (int, float) and 0 <= value < 200 * _YEAR
    if key == "peak_memory_gib" or key.endswith("seconds"):
        return type(value) in (int, float) and 0 <= value < _YEAR
    if key in _TEXTS:
        return isinstance(value, str)
    if key in ("tags", "bank", "changed"):
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if key == "libraries":
        return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
    return type(value) is not float or math.isfinite(value)


def _is_object(value: Json, *keys: str) -> bool:
    return isinstance(value, dict) and set(keys) <= set(value)


def _is_file(entry: Json) -> bool:
    """A plain name in the record's own folder, and a hash."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "sha256")):
        return False
    name: str = entry["name"]
    return Path(name).name == name


def _of_numbers(scores: Json) -> bool:
    """Whether every score is a number (or a list: answers, curves), however deep."""
    if isinstance(scores, dict):
        return all(map(_of_numbers, scores.values()))
    return isinstance(scores, int | float | list)


def read_unchecked(path: Path) -> Record:
    """The record at ``path`` as it is, of which it is known that it was whole; LookupError, TypeError, ValueError or
    OSError where it is none."""
    body = json.loads(read_regular(path))
    return Record(body["id"], body["result"], body["run"], run_is_hashed="run_sha256" in body, folder=path.parent)


def read_record(path: Path) -> Record | None:
    """The record at ``path``, None where there is none; DamagedRecord where it cannot be trusted."""
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        raise DamagedRecord(str(error)) from None
    return replace(parse_record(data, where=path), folder=path.parent)

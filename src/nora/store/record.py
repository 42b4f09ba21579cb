"""The record of a finished run: the only thing collation reads."""

from __future__ import annotations

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
        """The file's text; the hash covers ``result``."""
        body = {
            "schema": SCHEMA,
            "id": self.id,
            "result": self.result,
            "result_sha256": self.result_hash,
            "run": self.run,
        }
        return readable_json(body)


def parse_record(text: str | bytes, *, where: Path | str) -> Record:
    """The record in ``text``; DamagedRecord where it is not whole or altered, NewerRecord where a newer
    version wrote it."""

    try:
        body = parse_json(text, where=where)
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
    if sha256_bytes(canonical_json(body["result"]).encode()) != body["result_sha256"]:
        raise DamagedRecord(f"{where}: the result is not what its hash says (changed by hand or damaged)")
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
    if not unfit and _is_object(body["run"]) and not isinstance(body["run"].get("wall_seconds", 0), int | float):
        unfit = ["run.wall_seconds"]
    if not unfit and result.get("status") == "diverged" and not _is_object(result.get("diverged"), "step", "tensor"):
        unfit = ["diverged"]
    if unfit or not isinstance(body["run"], dict) or not isinstance(body["id"], str):
        raise DamagedRecord(f"{where}: no record of a run: its {', '.join(unfit) or 'run or id'} cannot be read")
    record = Record(body["id"], result, body["run"])
    if run_id(record.spec) != record.id:
        raise DamagedRecord(f"{where}: its spec has the id {run_id(record.spec)}, the record says {record.id}")
    if record.status not in STATUSES:
        raise DamagedRecord(f"{where}: given status {record.status!r}, allowed {', '.join(STATUSES)}")
    return record


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


def read_record(path: Path) -> Record | None:
    """The record at ``path``, None where there is none; DamagedRecord where it cannot be trusted."""
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        raise DamagedRecord(str(error)) from None
    return replace(parse_record(data, where=path), folder=path.parent)

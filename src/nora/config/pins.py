"""What pins inputs to bytes: Hub commits resolved by ``nora prefetch``, hashes of shipped rows and pictures."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import yaml

from nora import starts
from nora.errors import RunFailed, UserError
from nora.files import DamagedFile, Json, read_json, sha256_file

HELD_OUT = {"held_out/books.jsonl.gz": "9f4cbe34d6c82d09569e58b57508f6f641e625c6a551a02c31562e37044e4d64"}
"""The text of ``measure=[forgetting]``, below data/: which one it is belongs to what the word means."""
WINDOW = 128
"""Tokens of it that are read at once."""
COMPARED = {"fidelity", "drift"}
"""What is measured of pictures by the protocol's encoders, which a run without it does not load."""
DOWNLOADS = Path("data") / "hub"  # files that `nora prefetch` brings, below the checkout


def how_to_unlock(repo: str) -> str:
    """Where a gated repository's licence is accepted, and by which variable the Hub knows who accepted it."""
    return f"accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN (or run `hf auth login`) and repeat"


def not_here(repo: str, revision: str, error: Exception) -> str:
    """One line for a repository whose commit cannot be loaded: why, and how it gets here."""
    return (
        f"{repo}: commit {revision} cannot be loaded ({str(error).splitlines()[0]}); `nora prefetch` for its table, on "
        f"a machine with network, brings it here. Where it is gated: {how_to_unlock(repo)}"
    )


MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_PART_FILES = ("*.json", "merges.txt", "model.safetensors", "diffusion_pytorch_model.safetensors")
PIPELINE_FILES = ("model_index.json", *(f"{part}/{name}" for part in _PARTS for name in _PART_FILES))


def fetched_folder(repo: str, revision: str, wanted: Iterable[str]) -> Path:
    """Where `nora prefetch` has put a repository's commit; RunFailed where a file of ``wanted`` (names or patterns) is
    not there. What was not wanted then (a README, weights in other formats) is missing from the cache on purpose."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=sorted(wanted), local_files_only=True))
    except OSError as error:
        raise RunFailed(not_here(repo, revision, error)) from error


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def pictures_in(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder by their suffix, sorted, and the names of everything else in it.

    UserError where the folder is not there or holds no picture.
    """
    if not folder.is_dir():
        raise UserError(f"task.folder: given {folder}, which is no folder")
    entries = sorted(folder.iterdir())
    pictures = [path for path in entries if path.is_file() and path.suffix.lower() in SUFFIXES]
    if not pictures:
        raise UserError(f"task.folder: {folder} holds no picture ({', '.join(SUFFIXES)})")
    return pictures, [path.name for path in entries if path not in pictures]


def picture_hashes(folder: Path) -> dict[str, str]:
    """File name → sha256 of a folder's pictures."""
    return {path.name: sha256_file(path) for path in pictures_in(folder)[0]}


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """RunFailed where a file is missing or not what its hash says."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise RunFailed(f"{path}: missing; the checkout is incomplete")
        given = sha256_file(path)
        if given != expected:
            raise RunFailed(f"{path}: has SHA-256 {given}, its yaml or manifest says {expected}")


SUFFIX_GGUF = ".gguf"
_LOADED = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
_TOLD = ("pretraining.json", "README.md")  # about a base, read by nobody


def _loaded(folder: Path) -> list[str]:
    """Everything below a model's folder that a loader may read."""
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in _LOADED and path.name not in _TOLD]
    return [str(path.relative_to(folder)) for path in found if path.is_file()]


_HEADS = ("config.json", "model_index.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def model_hashes(checkout: Path, key: str, given: str) -> dict[str, str]:
    """Name → sha256 of everything below a model's folder that a loader may read; UserError if no model lies there."""
    folder = checkout / given
    try:
        problem = "" if any((folder / name).is_file() for name in _HEADS) else "model" if folder.is_dir() else "folder"
    except (OSError, ValueError):  # too long a name, or none at all
        problem = "folder"
    if problem:
        raise UserError(f"{key}: given {given}, no {problem} lies there")
    paths = [folder / name for name in _loaded(folder)]
    return {str(p.relative_to(folder)): _sha256(p, p.stat().st_size, p.stat().st_mtime_ns) for p in paths}


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    del size, changed  # parts of the key: a plan of many cells reads a file once
    return sha256_file(path)


def assets_manifest(checkout: Path) -> str:
    """What assets/MANIFEST.json says: the hash of every file of a shipped base that a loader may read."""
    assets = checkout / "assets"
    files = {name: sha256_file(assets / name) for name in _loaded(assets) if name != "MANIFEST.json"}
    return json.dumps(files, indent=1) + "\n"


def check_model_files(folder: Path, files: Mapping[str, str], checkout: Path) -> None:
    """RunFailed if a file of a model's folder is not what its hash says, or has none.

    What a yaml of the checkout does not name (a tokenizer's settings) is named in assets/MANIFEST.json.
    """
    check_files(folder, files)
    try:
        shipped = folder.resolve().relative_to((checkout / "assets").resolve())
    except ValueError:
        shipped = None
    manifest = _read_json(checkout / "assets" / "MANIFEST.json") if shipped is not None else {}
    rest = {
        name: manifest.get(str(shipped / name)) if shipped else None for name in _loaded(folder) if name not in files
    }
    unknown = sorted(name for name, digest in rest.items() if digest is None)
    if unknown:
        raise RunFailed(f"{folder}: {', '.join(unknown[:5])} would be loaded and no hash names it")
    check_files(folder, {name: str(digest) for name, digest in rest.items()})


class Pins:
    """The lock and the manifest of one checkout, and what they say of a spec."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        path = checkout / "conf" / "revisions.lock"
        self.lock: dict[str, Json] = _read_json(path)
        for group, entries in self.lock.items():
            if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
                raise UserError(f"{path}: {group}: given {str(entries)[:60]}, required an object of objects")
        self.slices: dict[str, Json] = _read_json(checkout / "data" / "MANIFEST.json")
        self._present: dict[str, list[str]] = {}

    def apply(self, plain: dict[str, Json]) -> dict[str, Json]:
        """The spec with its revisions and hashes filled in where they are known."""
        if "task" not in plain:
            return plain
        for part in ("model", "task"):  # a commit of what has none would stand in the record, and nothing read it
            source, revision = plain[part].get("source"), plain[part].get("revision")
            if revision is not None and source not in ("hub", "auto", "file"):  # of a file: own_rows
                allowed = f"allowed with {part}.source=hub alone, here it is {source}"
                raise UserError(f"{part}.revision: given {revision}, {allowed}")
        model, task = self._model(dict(plain["model"])), dict(plain["task"])
        if plain.get("kind") == "dreambooth":
            return {**plain, "model": model, "task": self._subject(task), "protocol": self._encoders(plain["protocol"])}
        if task.get("source") == "hub":
            pinned = self.lock.get("tasks", {}).get(task.get("name"), {})
            task["revision"] = _commit("task.revision", task.get("revision"), pinned)
            task["files"] = pinned.get("files") if task["revision"] == pinned.get("commit") else None
        elif task.get("source") == "file":
            from nora.config import own_rows

            task = own_rows.found(task, self._checkout)
        elif task.get("source") in ("slice", "small"):
            folder = f"{'small/' if task['source'] == 'small' else ''}{task.get('name')}"
            files = self._manifest_of(folder)
            if re.fullmatch(r"[\w.-]{1,64}", str(task.get("name"))):
                files = self._with_every_file(folder, files, task.get("files"))
            if task.get("files") is not None:
                _check_typed("task.files", task["files"], files)
            task["files"] = files or None
        return {**plain, "model": model, "task": task}

    def _manifest_of(self, folder: str) -> dict[str, str]:
        """Name → sha256 of what data/MANIFEST.json names in a folder of data/."""
        found = {name: entry for name, entry in self.slices.items() if name.startswith(f"{folder}/")}
        for name, entry in found.items():
            if not isinstance(entry, dict) or not re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))):
                raise UserError(f"data/MANIFEST.json: {name}: given {entry!r}, required an object with its sha256")
        return {name: entry["sha256"] for name, entry in found.items()}

    def _with_every_file(self, folder: str, named: dict[str, str], typed: Json) -> dict[str, str]:
        """With the rows of one's own, which are those that the config names; UserError where a file that would be read
        has no hash to be compared with."""
        data = self._checkout / "data"
        if folder not in self._present:
            found = [path for path in (data / folder).glob("*") if path.suffix in (".jsonl", ".gz", *SUFFIXES)]
            self._present[folder] = sorted(str(path.relative_to(data)) for path in found)
        present = self._present[folder]
        unnamed = [name for name in present if name not in named]
        if not unnamed:
            return named
        every = {name: named[name] if name in named else sha256_file(data / name) for name in present}
        if typed is None:
            hashes = ",".join(f"{name}:{digest}" for name, digest in every.items())
            own = f"rows of your own are named with their hashes: 'task.files={{{hashes}}}'"
            if folder.startswith("dreambooth/"):
                own = "pictures of your own: task.source=folder task.folder=FOLDER"
            raise UserError(
                f"task.source: data/{unnamed[0]} has no entry in data/MANIFEST.json; what is shipped: "
                f"`git checkout data/MANIFEST.json`; {own}"
            )
        return every

    def _model(self, model: dict[str, Json]) -> dict[str, Json]:
        """A shipped yaml keeps the hashes it has; of a folder given by override every file is hashed."""
        if model.get("source") == "auto":
            from nora.config import own_model  # which asks transformers and peft

            return own_model.found(model, self._checkout)[0]
        if model.get("source") == "hub":
            pinned = self.lock.get("models", {}).get(model.get("repo"), {})
            model["revision"] = _commit("model.revision", model.get("revision"), pinned)
            if model.get("weights") == "pretrained" and model["revision"] == pinned.get("commit"):
                model["files"] = pinned.get("files")
        random = model.get("weights") == "random"
        key = "tokenizer" if random else "repo"
        if not (random or model.get("source") == "asset") or not isinstance(model.get(key), str):
            return model
        shipped: dict[str, Json] = {}
        own = os.environ.get(starts.FOLDER)  # of --config-dir
        for folder in (Path(own), self._checkout / "conf") if own else (self._checkout / "conf",):
            path = folder / "model" / f"{model.get('name')}.yaml"
            shipped = shipped or (_shipped(path, path.stat().st_mtime) if path.is_file() else {})
        if all(model.get(name) == shipped.get(name) for name in (key, "files")):
            return model
        files = model_hashes(self._checkout, f"model.{key}", model[key])
        if model.get("files") not in (None, shipped.get("files")):
            _check_typed("model.files", model["files"], files)
        return {**model, "files": files}

    def _subject(self, task: dict[str, Json]) -> dict[str, Json]:
        """The pictures by commit, by the manifest, or by their bytes as they are in the user's folder."""
        if task.get("source") == "hub":
            pinned = self.lock.get("pictures", {}).get(task.get("repo"), {})
            return {**task, "revision": _commit("task.revision", task.get("revision"), pinned)}
        if task.get("source") == "slice":
            folder = f"dreambooth/{task.get('folder')}"
            files = self._manifest_of(folder)
            if re.fullmatch(r"[\w.-]{1,64}", str(task.get("folder"))):
                files = self._with_every_file(folder, files, None)
            return {**task, "files": files or None}
        if isinstance(task.get("folder"), str):
            return _own_subject(task, self._checkout)
        return task

    def _encoders(self, protocol: Json) -> Json:
        if not isinstance(protocol, dict) or not isinstance(protocol.get("encoders"), list):
            return protocol
        pinned = []
        for encoder in protocol["encoders"]:
            if isinstance(encoder, dict) and encoder.get("source") == "hub":
                pinned_to = self.lock.get("models", {}).get(encoder.get("repo"), {})
                encoder = {**encoder, "revision": _commit("revision", encoder.get("revision"), pinned_to)}
            pinned.append(encoder)
        return {**protocol, "encoders": pinned}


def _own_subject(task: dict[str, Json], checkout: Path) -> dict[str, Json]:
    """Pictures of one's own: what nothing says, or only the yaml of another subject, is taken from the folder's name: a
    folder "mug" has the subject V_mug, as the paper writes it."""
    from nora.config.own_model import as_name, as_written, place

    path = place(task["folder"], checkout) or Path(task["folder"])
    files, name = picture_hashes(path), as_name(path.name)
    yaml_of = checkout / "conf" / "task" / f"{task.get('name')}.yaml"
    known = re.fullmatch(r"[\w.-]{1,64}", str(task.get("name"))) and yaml_of.is_file()
    shipped = _shipped(yaml_of, yaml_of.stat().st_mtime) if known else {}
    keys = ("name", "subject", "noun", "instance_prompt", "prompt", "num_images", "images")
    typed = {key: task[key] for key in keys if task.get(key) is not None and task[key] != shipped.get(key)}
    subject = str(typed.get("subject", f"V_{name}"))
    words = {
        "name": name, "subject": subject, "noun": re.sub("[_-]+", " ", name),
        "instance_prompt": f"a photo of {subject}", "prompt": f"a {subject} on the beach",
    }  # fmt: skip
    rest = {key: value for key, value in task.items() if key not in keys}
    return {**rest, **words, **typed, "folder": as_written(path, checkout), "files": files}


def _commit(key: str, given: Json, pinned: Mapping[str, Json]) -> Json:
    """The commit that is typed, else the lock's; UserError for a name that can move."""
    if given is not None and not re.fullmatch(r"[0-9a-f]{40}(\+[0-9a-f]{40})*", str(given)):
        raise UserError(f"{key}: given {given}, required a commit (40 hex digits): a branch or tag can move")
    return pinned.get("commit") if given is None else given


def _check_typed(key: str, typed: Json, found: Json) -> None:
    """UserError if other hashes are typed than the files have."""
    if typed != found:
        raise UserError(f"{key}: given {typed}, the files here have {found}; leave it out, it is filled in")


@cache
def _shipped(path: Path, changed: float) -> dict[str, Json]:
    """The content of a yaml of conf/model/."""
    del changed  # part of the key
    content: dict[str, Json] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _read_json(path: Path) -> dict[str, Json]:
    """The object in it, every entry of which is one or a text; {} where there is no file, UserError for anything
    else."""
    try:
        value = read_json(path, {}, follow=True)
    except FileNotFoundError:
        return {}
    except DamagedFile as error:
        raise UserError(str(error)) from None
    unfit = [key for key, entry in value.items() if not isinstance(entry, dict | str)]
    if unfit:
        raise UserError(f"{path}: {unfit[0]}: given {value[unfit[0]]!r}, required an object")
    return value


def unpinned(spec: Mapping[str, Json]) -> list[str]:
    """The parts of a spec that the Hub holds and no commit pins."""

    def is_open(part: Mapping[str, Json]) -> bool:
        return part.get("source") == "hub" and part.get("weights") != "random" and not part.get("revision")

    found = [name for name in ("model", "task") if is_open(spec.get(name) or {})]
    encoders = spec["protocol"].get("encoders") or [] if COMPARED & {*spec.get("measure", [])} else []
    return found + [f"encoder {encoder['name']}" for encoder in encoders if is_open(encoder)]

"""What pins inputs to bytes: Hub commits resolved by ``nora prefetch``, hashes of shipped rows and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nora.errors import UserError
from nora.files import Json, sha256_file

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


class Pins:
    """The lock and the manifest of one checkout, and what they say of a spec."""

    def __init__(self, checkout: Path) -> None:
        self.lock: dict[str, Json] = _read_json(checkout / "conf" / "revisions.lock")
        self.slices: dict[str, Json] = _read_json(checkout / "data" / "MANIFEST.json")

    def apply(self, plain: dict[str, Json]) -> dict[str, Json]:
        """The spec with its revisions and row hashes filled in where they are known."""
        if "task" not in plain:
            return plain
        model, task = dict(plain["model"]), dict(plain["task"])
        if model.get("source") == "hub":
            model["revision"] = self.lock.get("models", {}).get(model.get("repo"), {}).get("commit")
        if plain.get("kind") == "dreambooth":
            return {**plain, "model": model, "task": self._subject(task), "protocol": self._encoders(plain["protocol"])}
        if task.get("source") == "hub":
            task["revision"] = self.lock.get("tasks", {}).get(task.get("name"), {}).get("commit")
        elif task.get("source") in ("slice", "small"):
            folder = "" if task["source"] == "slice" else "small/"
            own = [name for name in self.slices if name.startswith(f"{folder}{task.get('name')}/")]
            task["files"] = {name: self.slices[name]["sha256"] for name in own} or None
        return {**plain, "model": model, "task": task}

    def _subject(self, task: dict[str, Json]) -> dict[str, Json]:
        """The pictures by commit, by the manifest, or by their bytes as they are in the user's folder."""
        if task.get("source") == "hub":
            return {**task, "revision": self.lock.get("pictures", {}).get(task.get("repo"), {}).get("commit")}
        if task.get("source") == "slice":
            prefix = f"dreambooth/{task.get('folder')}/"
            files = {n: entry["sha256"] for n, entry in self.slices.items() if n.startswith(prefix)}
            return {**task, "files": files or None}
        if isinstance(task.get("folder"), str):
            return {**task, "files": picture_hashes(Path(task["folder"]))}
        return task

    def _encoders(self, protocol: Json) -> Json:
        if not isinstance(protocol, dict) or not isinstance(protocol.get("encoders"), list):
            return protocol
        pinned = []
        for encoder in protocol["encoders"]:
            if isinstance(encoder, dict) and encoder.get("source") == "hub":
                commit = self.lock.get("models", {}).get(encoder.get("repo"), {}).get("commit")
                encoder = {**encoder, "revision": commit}
            pinned.append(encoder)
        return {**protocol, "encoders": pinned}


def _read_json(path: Path) -> dict[str, Json]:
    try:
        value: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def unpinned(spec: Mapping[str, Json]) -> list[str]:
    """The parts of a spec that the Hub holds and no commit pins."""

    def is_open(part: Mapping[str, Json]) -> bool:
        return part.get("source") == "hub" and part.get("weights") != "random" and not part.get("revision")

    found = [name for name in ("model", "task") if is_open(spec.get(name) or {})]
    encoders = spec["protocol"].get("encoders") or [] if "fidelity" in spec.get("measure", []) else []
    return found + [f"encoder {encoder['name']}" for encoder in encoders if is_open(encoder)]

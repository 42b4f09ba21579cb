"""What pins inputs to their bytes: pictures and downloads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from nora.errors import RunFailed, UserError
from nora.files import sha256_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from nora.config.schema import SubjectSpec


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
_LOG = logging.getLogger(__name__)


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


def _hub_folder(spec: SubjectSpec) -> Path:
    from huggingface_hub import snapshot_download

    repo, revision = str(spec.repo), str(spec.revision)
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision))
    except OSError as error:
        raise RunFailed(not_here(repo, revision, error)) from error


def picture_paths(spec: SubjectSpec, checkout: Path) -> list[Path]:
    """The files of the subject's pictures, in order. UserError where one is missing or not what its hash says."""
    if spec.source == "slice":
        paths = [checkout / "data" / name for name in sorted(spec.files or {})]
        if not paths:
            raise UserError(
                f"task.folder: given {spec.folder!r}, data/MANIFEST.json has no picture of dreambooth/{spec.folder}"
            )
        hashes = [spec.files[name] for name in sorted(spec.files or {})] if spec.files else []
        for path, expected in zip(paths, hashes, strict=True):
            if not path.is_file() or sha256_file(path) != expected:
                raise UserError(f"{path}: missing, or not what data/MANIFEST.json says; the checkout is damaged")
    else:
        paths, skipped = pictures_in(_hub_folder(spec) if spec.source == "hub" else Path(str(spec.folder)))
        if skipped and spec.source == "folder":
            _LOG.warning("task.folder: %s skipped, no picture (%s)", ", ".join(skipped), ", ".join(SUFFIXES))
        if spec.images is not None:
            named = {path.name: path for path in paths}
            absent = [name for name in spec.images if name not in named]
            if absent:
                raise UserError(
                    f"task.images: {', '.join(absent)} not in {spec.repo or spec.folder}, which has {', '.join(named)}"
                )
            paths = [named[name] for name in spec.images]
    if spec.num_images is not None and len(paths) != spec.num_images:
        raise UserError(f"task {spec.name}: found {len(paths)} pictures, required {spec.num_images} (task.num_images)")
    return paths


def load_pictures(spec: SubjectSpec, checkout: Path) -> list[Image]:
    """Every picture, decoded, RGB, upright. UserError that names the file where one cannot be read."""
    from PIL import Image, ImageOps

    loaded = []
    for path in picture_paths(spec, checkout):
        try:
            with Image.open(path) as image:
                loaded.append(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: cannot be read as a picture ({' '.join(str(error).split())})") from None
    return loaded

"""A base from a GGUF file: found in a folder or an installed package, dequantised once to a folder of plain weights."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from nora.config.pins import DOWNLOADS, check_files
from nora.config.schema import ModelSpec
from nora.errors import RunFailed, UserError
from nora.files import read_json, sha256_file

_CONTENT = "content.json"


def gguf_file(spec: ModelSpec, checkout: Path) -> Path:
    """The file of a base with ``source`` gguf or package; UserError if it, or the reader, is not installed."""
    (name,) = spec.files or {}
    if spec.source == "package":
        found = importlib.util.find_spec(str(spec.repo))
        folder = Path((found.submodule_search_locations or [""])[0]) if found is not None else None
        where = f"the package {spec.repo}"
    else:
        folder = checkout / str(spec.repo)
        where = str(folder)
    if folder is None or not (folder / name).is_file():
        raise UserError(f"model={spec.name}: {name} is not here, expected in {where}; `make small` installs the base")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model={spec.name}: reading {name} takes the package gguf; `make small` installs it")
    return folder / name


def dequantised(spec: ModelSpec, checkout: Path) -> Path:
    """A folder that ``from_pretrained`` reads: the file's weights in float32, its config and its tokenizer.

    Written once per file (by content) below the downloads; every file of it is compared with its hash when it is used.
    RunFailed if the file, or what was made of it, is not what its hash says.
    """
    source = gguf_file(spec, checkout)
    ((name, digest),) = (spec.files or {}).items()
    made = checkout / DOWNLOADS / f"gguf-{digest[:16]}"
    if not made.is_dir():
        check_files(source.parent, {name: digest})
        _write(source, made)
    try:
        content = read_json(made / _CONTENT, {})
        check_files(made, content)
        others = {path.name for path in made.iterdir()} - {*content, _CONTENT}
        if others:
            raise RunFailed(f"{', '.join(sorted(others))} would be loaded and no hash names it")
    except (OSError, ValueError, AttributeError, RunFailed) as error:
        raise RunFailed(f"{made}: not what was made of {name} ({error}); delete the folder") from None
    return made


def _write(source: Path, target: Path) -> None:
    """The folder gets its name when it is complete; of two that write at once the first one's stays."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}-"))
    try:
        read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        del read.config.quantization_config
        plain = AutoModelForCausalLM.from_config(read.config)  # the one that was read refuses to be saved
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
        hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
        (folder / _CONTENT).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        folder.chmod(0o755)
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)

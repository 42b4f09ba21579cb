"""model, task: a model and rows of one's own, written down under a name and looked at before anything is trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import click

from nora import starts
from nora.config import own_model
from nora.config.compose import choices
from nora.errors import UserError
from nora.files import Json, write_atomic
from nora.verbs.words import dry_run_flag
from nora.workspace import find_checkout


def as_yaml(plain: Mapping[str, Json], comment: str) -> str:
    """A yaml in which every text is quoted: a hash of digits and one e is no number."""
    lines = [f"# {comment}"]
    for key, value in plain.items():
        if isinstance(value, dict):
            entries = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()]
            lines += [f"{key}:", *entries] if entries else [f"{key}: {{}}"]
        else:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


@click.group()
def model() -> None:
    """A model of your own under a name: nora model add NAME PATH."""


@model.command("add")
@click.argument("name", metavar="NAME")
@click.argument("path", metavar="PATH|HUB-NAME")
@dry_run_flag
def model_add(name: str, path: str, dry_run: bool) -> int:
    """Writes model/NAME.yaml into --config-dir, or else conf/, with the SHA-256 of every file that is loaded.

    PATH: a folder with config.json and .safetensors (or a diffusers pipeline), a .gguf file. A name of the Hub is
    downloaded, by its commit.
    """
    checkout = find_checkout()
    conf = Path(os.environ.get(starts.FOLDER) or checkout / "conf")
    if own_model.as_name(name) != name:
        raise UserError(f"NAME: given {name!r}, required letters, digits and ._- (at most 64)")
    if name in choices(checkout / "conf", "model"):
        raise UserError(f"NAME: given {name}, which is there already; `nora list models` has all")
    asked: dict[str, Json] = {"name": name, "repo": path, "weights": "pretrained", "dtype": "float32"}
    if own_model.place(path, checkout) is None and own_model.is_hub_name(path) and not dry_run:
        from nora.config.pins import MODEL_FILES
        from nora.execution.prefetch import fetched, refused

        try:
            asked["revision"] = fetched(path, [f for f in MODEL_FILES if f != "*.bin"])["commit"]
        except Exception as error:
            raise refused(error, path) from None
    spec, said = own_model.found(asked, checkout)
    print(said)
    target = conf / "model" / f"{name}.yaml"
    if dry_run:
        print(as_yaml(spec, "what would be written"), end="")
    else:
        write_atomic(target, as_yaml(spec, "Written by `nora model add` from the model's own config and tokenizer."))
        print(target)
    return 0
